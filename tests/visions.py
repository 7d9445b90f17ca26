"""Tiny random vision models as folders of the kind that `save_pretrained` writes; what the tests read in place of the Hub's."""
import torch


def tiny(folder, family='vit', size=224, patch=32, seed=0):
    "-> `folder` with a random model of `family` ('clip', 'siglip2', 'siglip', 'vit') and its image processor; 32 wide, 2 layers."
    import transformers as t
    from transformers.utils import logging
    torch.manual_seed(seed)
    logging.disable_progress_bar(); logging.set_verbosity_error()
    body = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, patch_size=patch)
    words = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50, max_position_embeddings=8)
    square = dict(height=size, width=size)
    if family == 'clip':
        model = t.CLIPModel(t.CLIPConfig(text_config=words, vision_config=body | dict(image_size=size), projection_dim=8))
        p = t.CLIPImageProcessorPil(size={'shortest_edge': size}, crop_size=square)
    elif family == 'siglip2':
        model = t.Siglip2Model(t.Siglip2Config(text_config=words, vision_config=body | dict(num_patches=(size//patch)**2)))
        p = t.Siglip2ImageProcessorPil(patch_size=patch, max_num_patches=(size//patch)**2)
    elif family == 'siglip':
        model = t.SiglipModel(t.SiglipConfig(text_config=words, vision_config=body | dict(image_size=size)))
        p = t.SiglipImageProcessorPil(size=square)
    else:
        model = t.ViTModel(t.ViTConfig(**body, image_size=size, initializer_range=.5))
        p = t.ViTImageProcessorPil(size=square)
    model.save_pretrained(folder); p.save_pretrained(folder)
    return str(folder)
