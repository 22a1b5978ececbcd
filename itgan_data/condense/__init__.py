"""From a frozen generator and real images to learned latents."""
