import errno
import json
import multiprocessing
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import use_endpoint, write_bundle
from hub_server import LoopbackHub
from huggingface_hub import ModelCard, constants, file_download
from huggingface_hub.utils import close_session

from itgan_data.bundle import hub as hub_module
from itgan_data.bundle.hub import HubError
from itgan_data.bundle.reading import pull_bundle
from itgan_data.bundle.writing import Bundle, load_bundle, push_bundle, save_bundle
from itgan_data.storage.files import read_json, sha256_of, write_json

NEEDED = {"config.json", "generator.safetensors", "latents.safetensors", "README.md", "preview.png"}
UNKNOWN_COMMIT = "0" * 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes."""
    folder = write_bundle(tmp_path_factory.mktemp("made") / "bundle", ["cat", "dog", "owl"])
    bundle = load_bundle(folder)
    save_bundle(folder, bundle.generator, bundle.latents, config=bundle.config)  # now with a preview
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    (tmp_path / "bundle").mkdir()
    for file in made.iterdir():
        (tmp_path / "bundle" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "bundle"


@pytest.fixture
def published(hub: LoopbackHub, made: Path) -> LoopbackHub:
    """A Hub with the bundle as org/name."""
    hub.publish("org/name", made)
    return hub


def assert_equal(bundle: Bundle, folder: Path) -> None:
    expected = load_bundle(folder)
    assert bundle.config == expected.config
    assert torch.equal(bundle.latents.latents, expected.latents.latents)
    weights = bundle.generator.state_dict()
    for name, tensor in expected.generator.state_dict().items():
        assert torch.equal(weights[name], tensor)


def error_of(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(HubError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


class TestPull:
    def test_a_bundle_arrives_whole(self, published: LoopbackHub, made: Path) -> None:
        bundle = load_bundle("org/name")
        assert_equal(bundle, made)
        assert {file.name for file in bundle.path.iterdir()} == NEEDED

    def test_nothing_else_is_fetched(self, published: LoopbackHub) -> None:
        published.repositories["org/name"].files["pytorch_model.bin"] = b"a pickle"
        load_bundle("org/name")
        assert published.requested("bin") == []

    def test_the_branch_is_resolved_once_and_every_file_is_of_that_commit(
        self, published: LoopbackHub, made: Path
    ) -> None:
        repository = published.repositories["org/name"]
        commit = repository.refs["main"]
        published.fail("HEAD .*config", before=lambda: repository.commit({"config.json": b"{}"}))
        bundle = load_bundle("org/name")
        assert repository.refs["main"] != commit
        assert_equal(bundle, made)
        assert len(published.requested("/api/")) == 1
        files = published.requested("/resolve/|/storage/")
        assert files == [request for request in files if commit in request]

    def test_revisions_are_branches_tags_and_commits(self, published: LoopbackHub, folder: Path) -> None:
        first = published.repositories["org/name"].refs["main"]
        published.repositories["org/name"].refs["v1"] = first
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", config | {"method": "DM"})
        published.publish("org/name", folder)
        methods = [load_bundle(f"org/name{at}").config["method"] for at in ("", "@main", "@v1", f"@{first}")]
        assert methods == ["DM", "DM", "IT-GAN", "IT-GAN"]
        assert load_bundle("org/name", revision="v1").config["method"] == "IT-GAN"

    def test_a_cached_bundle_at_a_full_commit_id_makes_no_request(self, published: LoopbackHub) -> None:
        commit = published.repositories["org/name"].refs["main"]
        load_bundle("org/name", revision=commit)
        published.requests.clear()
        load_bundle("org/name", revision=commit)
        load_bundle(f"org/name@{commit}")
        assert published.requests == []

    def test_a_cached_bundle_without_card_and_preview_makes_no_request_either(
        self, hub: LoopbackHub, folder: Path
    ) -> None:
        (folder / "README.md").unlink()
        (folder / "preview.png").unlink()
        commit = hub.publish("org/name", folder)
        load_bundle("org/name")
        hub.requests.clear()
        load_bundle("org/name", revision=commit)
        assert hub.requests == []

    def test_a_cached_bundle_by_name_asks_for_the_commit_alone(self, published: LoopbackHub) -> None:
        load_bundle("org/name")
        published.requests.clear()
        load_bundle("org/name")
        assert published.requests == ["GET /api/models/org/name"]

    @pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE", "no server"])
    def test_a_cached_bundle_needs_no_hub(
        self, published: LoopbackHub, made: Path, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        load_bundle("org/name")
        published.requests.clear()
        if how == "HF_HUB_OFFLINE":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the client reads the variable at import
        if how == "no server":
            published.close()
            close_session()
        assert_equal(load_bundle("org/name", local_files_only=how == "local_files_only"), made)
        assert published.requests == []

    def test_a_private_bundle_needs_the_users_token(self, published: LoopbackHub) -> None:
        published.repositories["org/name"].private = True
        assert "no repository org/name" in error_of(load_bundle, "org/name")
        load_bundle("org/name", token="reader")

    def test_the_token_does_not_go_to_the_storage_host(self, published: LoopbackHub) -> None:
        load_bundle("org/name", token="reader")
        assert {token for host, token in published.tokens_seen if host.startswith("127.0.0.1")} == {"reader"}
        assert {token for host, token in published.tokens_seen if host.startswith("localhost")} == {None}

    def test_a_mirror_is_asked_in_place_of_the_hub(
        self, published: LoopbackHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use_endpoint("http://127.0.0.1:9", monkeypatch)
        load_bundle("org/name", endpoint=published.endpoint)
        assert "endpoint must be a URL" in error_of(load_bundle, "org/name", endpoint="mirror.example")

    def test_a_folder_of_that_name_wins_and_that_is_said(
        self,
        published: LoopbackHub,
        folder: Path,
        made: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.chdir(folder.parent)
        (folder.parent / "org").mkdir()
        folder.rename("org/name")
        assert load_bundle("org/name").path == Path("org/name")
        assert caplog.messages == [
            "org/name is the folder here, not a bundle on the Hub; write ./org/name to mean the folder"
        ]
        load_bundle("./org/name")
        load_bundle(Path("org/name"))
        assert len(caplog.messages) == 1  # these can be nothing else
        with pytest.raises(ValueError, match=r"org/name is a folder, which has no revision 'v1'"):
            load_bundle("org/name", revision="v1")
        assert published.requests == []
        pulled = pull_bundle("org/name")
        assert pulled != Path("org/name")
        assert_equal(load_bundle(pulled), made)

    @pytest.mark.parametrize("name", ["bundle", "a/b/c", "./org/name", "/runs/bundle"])
    def test_only_the_name_of_a_repository_is_pulled(self, hub: LoopbackHub, name: str) -> None:
        with pytest.raises(ValueError, match="is not a repository's name; expected org/name"):
            pull_bundle(name)
        assert hub.requests == []

    def test_two_revisions_are_one_too_many(self, published: LoopbackHub) -> None:
        with pytest.raises(ValueError, match="both name a revision"):
            load_bundle("org/name@v1", revision="v2")

    @pytest.mark.parametrize("revision", ["../main", "/etc/passwd", "", "a b"])
    def test_a_revision_that_is_a_path_is_refused(self, published: LoopbackHub, revision: str) -> None:
        assert "is not a revision" in error_of(load_bundle, "org/name", revision=revision)
        assert published.requests == []

    def test_the_configuration_is_checked_before_the_tensors_are_fetched(
        self, published: LoopbackHub, folder: Path
    ) -> None:
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", config | {"format_version": 3})
        published.publish("org/name", folder)
        with pytest.raises(ValueError, match="format version 3, this release reads 1 to 2"):
            load_bundle("org/name")
        assert published.requested("safetensors") == []

    @pytest.mark.parametrize(
        ("name", "size"), [("config.json", 5 << 20), ("README.md", 33 << 20), ("latents.safetensors", 5 << 30)]
    )
    def test_a_huge_file_is_not_downloaded(self, published: LoopbackHub, name: str, size: int) -> None:
        published.fail(f"HEAD .*{name}", headers={"X-Linked-Size": str(size)}, times=2)
        assert f"{name} of org/name has {size} bytes, expected at most" in error_of(load_bundle, "org/name")
        assert published.requested(f"GET .*{name}") == []

    def test_sharded_latents_travel_too(self, hub: LoopbackHub, folder: Path) -> None:
        shard(folder, 3)
        push_bundle(folder, "org/name", token="writer")
        assert_equal(load_bundle("org/name"), folder)

    def test_processes_that_pull_at_once_do_not_disturb_each_other(self, published: LoopbackHub, made: Path) -> None:
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=_pull_and_compare, args=(made, torch.get_num_threads())) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * 4


def _pull_and_compare(made: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    assert_equal(load_bundle("org/name"), made)
    os._exit(0)  # the parent's exit handlers are not this process's


def shard(folder: Path, count: int) -> None:
    """Spread a bundle's latents over several files."""
    latents = load_bundle(folder).latents
    latents.save(folder / "latents.safetensors", max_shard_bytes=42 * -(-len(latents) // count))
    config = read_json(folder / "config.json")
    names = ["generator.safetensors", *sorted(file.name for file in folder.glob("latents*"))]
    write_json(folder / "config.json", config | {"sha256": {name: sha256_of(folder / name) for name in names}})
    assert len(names) == count + 2


class TestPush:
    def test_a_repository_is_made_and_filled_in_one_commit(self, hub: LoopbackHub, made: Path) -> None:
        url = push_bundle(load_bundle(made), "org/name", token="writer")
        repository = hub.repositories["org/name"]
        assert url == f"{hub.endpoint}/org/name/commit/{repository.refs['main']}"
        assert hub.sent == [sorted(NEEDED)]
        assert not repository.private
        for name in NEEDED - {"README.md"}:
            assert repository.files[name] == (made / name).read_bytes()

    def test_what_was_pushed_can_be_pulled_and_pushed_on(self, hub: LoopbackHub, made: Path) -> None:
        push_bundle(made, "org/name", token="writer")
        bundle = load_bundle("org/name")
        push_bundle(bundle, "org/copy", token="writer")  # its files are links into the client's cache
        assert_equal(load_bundle("org/copy"), made)

    def test_unchanged_files_are_not_sent_again(self, hub: LoopbackHub, folder: Path) -> None:
        first = push_bundle(folder, "org/name", token="writer")
        assert push_bundle(folder, "org/name", token="writer") == first
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", config | {"method": "DM"})
        push_bundle(folder, "org/name", token="writer")
        assert hub.sent[1:] == [["config.json"]]

    def test_a_card_that_is_there_stays_unless_told_otherwise(self, hub: LoopbackHub, folder: Path) -> None:
        push_bundle(folder, "org/name", token="writer")
        repository = hub.repositories["org/name"]
        repository.files["README.md"] = b"edited by hand"
        push_bundle(folder, "org/name", token="writer")
        assert repository.files["README.md"] == b"edited by hand"
        push_bundle(folder, "org/name", token="writer", overwrite_card=True)
        assert b'load_bundle("org/name")' in repository.files["README.md"]

    def test_the_makers_own_card_is_published_as_it_is(self, hub: LoopbackHub, folder: Path) -> None:
        (folder / "README.md").write_text("---\nlicense: mit\n---\nMine.")
        push_bundle(folder, "org/name", token="writer")
        assert hub.repositories["org/name"].files["README.md"] == b"---\nlicense: mit\n---\nMine."

    def test_a_card_without_metadata_is_refused(self, hub: LoopbackHub, folder: Path) -> None:
        (folder / "README.md").write_text("---\n[\n---\n")
        hub.fail("validate-yaml", status=400)
        assert "Invalid metadata in README.md" in error_of(push_bundle, folder, "org/name", token="writer")
        assert hub.sent == []

    def test_the_card_is_one_that_the_client_reads(self, hub: LoopbackHub, folder: Path) -> None:
        push_bundle(folder, "org/name", token="writer")
        card = ModelCard(hub.repositories["org/name"].files["README.md"].decode())
        assert card.data.library_name == "itgan-data"
        assert "preview.png" in card.text

    def test_a_branch_is_made_where_there_is_none(self, hub: LoopbackHub, made: Path) -> None:
        push_bundle(made, "org/name", token="writer", revision="v2/half")
        assert_equal(load_bundle("org/name", revision="v2/half"), made)
        assert "config.json" not in hub.repositories["org/name"].files

    def test_a_private_repository_is_private_from_the_start(self, hub: LoopbackHub, made: Path) -> None:
        push_bundle(made, "org/name", private=True, token="writer")
        assert hub.repositories["org/name"].private

    def test_what_is_to_be_private_does_not_go_to_a_public_repository(self, published: LoopbackHub, made: Path) -> None:
        assert "is public" in error_of(push_bundle, made, "org/name", private=True, token="writer")
        assert published.sent == []

    def test_shards_that_are_no_more_are_removed(self, hub: LoopbackHub, folder: Path) -> None:
        shard(folder, 3)
        push_bundle(folder, "org/name", token="writer")
        shard(folder, 2)
        push_bundle(folder, "org/name", token="writer")
        names = hub.repositories["org/name"].files
        assert sorted(name for name in names if "-of-" in name) == [
            "latents-00001-of-00002.safetensors",
            "latents-00002-of-00002.safetensors",
        ]
        assert ".gitattributes" in names

    def test_a_damaged_bundle_makes_no_request(self, hub: LoopbackHub, folder: Path) -> None:
        (folder / "latents.safetensors").write_bytes(b"damaged")
        with pytest.raises(ValueError, match="does not match its sha256"):
            push_bundle(folder, "org/name", token="writer")
        assert hub.requests == []

    def test_a_link_to_a_file_elsewhere_is_not_published(self, hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("key")
        (folder / "README.md").unlink()
        (folder / "README.md").symlink_to(tmp_path / "secret")
        with pytest.raises(ValueError, match="is a link to another file, which would be published"):
            push_bundle(folder, "org/name", token="writer")
        assert hub.requests == []

    @pytest.mark.parametrize("name", ["name", "org/name@v1", "a/b/c", "../name"])
    def test_a_name_must_be_that_of_a_repository(self, hub: LoopbackHub, made: Path, name: str) -> None:
        with pytest.raises(ValueError, match="expected org/name"):
            push_bundle(made, name, token="writer")


class TestErrorsOfPull:
    def test_no_such_repository_or_no_access(self, hub: LoopbackHub) -> None:
        for token in (None, "reader"):
            message = error_of(pull_bundle, "runs/bundle", token=token)
            assert re.match("there is no repository runs/bundle at http://.*check the name or log in", message)

    @pytest.mark.parametrize("source", ["runs/bundle", "org/name", "data/cifar10.bundle"])
    def test_what_is_neither_folder_nor_repository_is_called_both(self, hub: LoopbackHub, source: str) -> None:
        message = error_of(load_bundle, source)
        assert message.startswith(f"there is no folder {source}, and as a name on the Hub: there is no repository")
        assert "folder" not in error_of(load_bundle, source, revision="main")  # folders have none

    @pytest.mark.parametrize("revision", ["v9", UNKNOWN_COMMIT])
    def test_no_such_revision(self, published: LoopbackHub, revision: str) -> None:
        message = error_of(load_bundle, "org/name", revision=revision)
        assert message == (
            f"org/name, revision {revision}: there is no such revision; expected a branch, a tag or a full commit id"
        )

    def test_a_repository_of_something_else(self, published: LoopbackHub) -> None:
        del published.repositories["org/name"].files["config.json"]
        assert "there is no file config.json; expected a bundle" in error_of(load_bundle, "org/name")

    def test_a_file_that_the_configuration_names_is_missing(self, published: LoopbackHub) -> None:
        del published.repositories["org/name"].files["latents.safetensors"]
        assert "there is no file latents.safetensors" in error_of(load_bundle, "org/name")

    @pytest.mark.parametrize("revision", [None, UNKNOWN_COMMIT])
    def test_offline_and_not_cached(self, published: LoopbackHub, revision: str | None) -> None:
        message = error_of(load_bundle, "org/name", revision=revision, local_files_only=True)
        assert re.search(r"is not in the cache and requests are off; get it once while online", message)

    def test_gated(self, published: LoopbackHub) -> None:
        published.repositories["org/name"].gated = True
        message = error_of(load_bundle, "org/name")
        assert re.search(r"org/name is gated: ask for access at http://\S+/org/name, then log in", message)

    def test_a_token_that_is_no_more(self, published: LoopbackHub) -> None:
        assert "the token was refused; log in" in error_of(load_bundle, "org/name", token="expired")

    @pytest.mark.parametrize("what", ["/api/models", "HEAD .*/config.json", "GET .*/config.json"])
    @pytest.mark.parametrize(
        ("status", "message"),
        [
            (403, "your token has no right to do this"),
            (429, "takes no more requests from you for now; wait some minutes"),
            (500, r"has trouble of its own \(status 500\); run again later"),
        ],
    )
    def test_the_hub_refuses(self, published: LoopbackHub, what: str, status: int, message: str) -> None:
        published.fail(what, status=status, times=20)
        assert re.search(message, error_of(load_bundle, "org/name"))

    def test_no_server(self, published: LoopbackHub) -> None:
        published.close()
        close_session()
        for revision in (None, UNKNOWN_COMMIT):
            assert "cannot be reached or hung up" in error_of(load_bundle, "org/name", revision=revision)

    def test_a_passing_fault_is_not_noticed(self, published: LoopbackHub, made: Path) -> None:
        published.fail("HEAD .*/config.json", status=500)
        published.fail("GET .*/config.json", status=429)
        assert_equal(load_bundle("org/name"), made)

    def test_a_download_that_is_cut_goes_on_where_it_was(
        self, published: LoopbackHub, made: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)  # what the client writes at once, 10 MB otherwise
        published.fail("GET .*/generator.safetensors", cut_after=1000)
        assert_equal(load_bundle("org/name"), made)
        assert published.requested("GET .*/generator.safetensors bytes=1000-")

    def test_an_interrupted_pull_keeps_the_files_that_are_whole(self, published: LoopbackHub, made: Path) -> None:
        published.fail("GET .*/latents.safetensors", cut_after=0, times=20)
        assert re.search("hung up .*run again, whole files are kept", error_of(load_bundle, "org/name"))
        published.faults.clear()
        published.requests.clear()
        assert_equal(load_bundle("org/name"), made)
        assert [request.rpartition("/")[2] for request in published.requested("GET .*/storage|GET .*/resolve")] == [
            "latents.safetensors"
        ]

    def test_a_short_body_is_not_taken_for_the_file(self, published: LoopbackHub, made: Path) -> None:
        published.fail("GET .*/latents.safetensors", short_by=5)
        assert "latents.safetensors did not arrive" in error_of(load_bundle, "org/name")
        assert_equal(load_bundle("org/name"), made)

    def test_a_full_disk(self, published: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        def write_to_a_full_disk(*_: Any, **__: Any) -> None:
            with open("/dev/full", "wb", buffering=0) as file:
                file.write(b"x")

        monkeypatch.setattr(file_download, "http_get", write_to_a_full_disk)
        message = error_of(load_bundle, "org/name")
        assert "no space left on the disk for config.json; free some" in message
        assert os.strerror(errno.ENOSPC) not in message

    def test_a_server_that_is_no_hub(self, published: LoopbackHub) -> None:
        published.fail("/api/models", status=200, times=20)
        assert "does not answer as a Hub does" in error_of(load_bundle, "org/name")
        published.repositories["org/name"].refs["main"] = "../../elsewhere"
        published.repositories["org/name"].commits["../../elsewhere"] = {}
        published.faults.clear()
        assert "expected a commit id" in error_of(load_bundle, "org/name")


class TestErrorsOfPush:
    def test_no_token(self, hub: LoopbackHub, made: Path) -> None:
        assert "log in" in error_of(push_bundle, made, "org/name")

    @pytest.mark.parametrize("exists", [True, False])
    def test_no_rights(self, hub: LoopbackHub, made: Path, exists: bool) -> None:
        if exists:
            hub.publish("org/name", made)
        message = error_of(push_bundle, made, "org/name", token="reader")
        assert "your token has no right to do this; use one that has" in message
        assert hub.sent == []

    def test_somebody_else_was_faster(self, published: LoopbackHub, folder: Path) -> None:
        repository = published.repositories["org/name"]
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", config | {"method": "DM"})
        published.fail("POST .*/commit/", before=lambda: repository.commit({"config.json": b"theirs"}))
        message = error_of(push_bundle, folder, "org/name", token="writer")
        assert "somebody else has changed it in the meantime" in message
        assert repository.files == {"config.json": b"theirs"}

    @pytest.mark.parametrize("what", ["repos/create", "preupload", "/commit/"])
    @pytest.mark.parametrize(("status", "message"), [(429, "takes no more requests"), (500, "trouble of its own")])
    def test_the_hub_refuses(self, hub: LoopbackHub, made: Path, what: str, status: int, message: str) -> None:
        hub.fail(what, status=status, times=20)
        assert message in error_of(push_bundle, made, "org/name", token="writer")
        assert hub.sent == []

    def test_offline(self, hub: LoopbackHub, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        close_session()  # the client takes note of it with a new connection
        message = error_of(push_bundle, made, "org/name", token="writer")
        assert "requests are off" in message


def test_the_module_is_a_leaf_that_knows_nothing_of_bundles() -> None:
    assert "bundle" not in json.dumps(sorted(vars(hub_module)))
