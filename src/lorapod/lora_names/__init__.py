"""Names of the layers that LoRA files adapt: those of diffusers, in which the engine trains, and those of others.

kohya   `lora_unet_…` with underscores for dots, and the U-Net's names in the original SDXL checkpoint
flux    FLUX.1's original names, whose layers are fused, and Z-Image's
flux2   FLUX.2's, likewise
wan     Wan's original names

No torch is needed here.
"""
