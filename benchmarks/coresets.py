"""Real images chosen by herding and forgetting, kept in a file: the network that chooses is trained on all of them."""

from dataclasses import replace
from pathlib import Path

from setting import Setting, training_bar

from itgan_data.condense.selection import embed_images, forgetting_events, select_forgetting, select_herding
from itgan_data.draws import Stream, make_rng
from itgan_data.networks import create_network
from itgan_data.recipes import Recipe
from itgan_data.storage.files import read_json, write_json


def coreset_recipe(setting: Setting) -> Recipe:
    """That of the rows, with as many steps as it takes to show all images twice."""
    recipe = setting.recipe
    return replace(recipe, steps=max(recipe.steps, 2 * max(len(setting.train) // recipe.batch_size, 1)))


def choose_coresets(setting: Setting, images_per_class: int, file: Path) -> dict[str, list[int]]:
    """Indices of the images of each selection, by one network that is trained on all; kept in `file`."""
    recipe, seed, normalization = coreset_recipe(setting), setting.seeds[0], setting.bundle.normalization
    work = {
        "data": setting.train.fingerprint,
        "images_per_class": images_per_class,
        "steps": recipe.steps,
        "seed": seed,
    }
    if file.is_file() and (stored := read_json(file)).get("work") == work:
        return stored["indices"]
    rng = make_rng(seed, stream=Stream.CLASSIFIER)
    network = create_network(setting.network, setting.train.num_classes, image_shape=setting.train.image_shape, rng=rng)
    with training_bar("coresets", recipe.steps) as progress:
        events = forgetting_events(
            network,
            setting.train,
            recipe,
            normalization=normalization,
            seed=seed,
            device=setting.device,
            progress=progress,
        )
    embeddings = embed_images(network, setting.train, normalization, precision=recipe.precision)
    indices = {
        "herding": select_herding(setting.train, images_per_class, embeddings=embeddings).tolist(),
        "forgetting": select_forgetting(setting.train, images_per_class, events=events, seed=seed).tolist(),
    }
    write_json(file, {"work": work, "indices": indices})
    return indices
