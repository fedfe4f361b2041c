"""A model that offers many sizes, prompts whose tiles have several, and a plain loop that both are tied to."""

from math import isqrt

import torch
from torch.nn.utils.rnn import pad_sequence

from one_file import one_file
from tiny import IMAGE_TOKEN, PAD, tiny_model

SIZES = ["16", "4", "4:16", "16:4", "16:0", "16:1"]
GROWS = {"downsample_ratio": 0.5, "num_lr_projectors": 2, "insert_start": 1, "insert_interval": 1}


def dial(expand_layer=2, merge_layer=3, tokens_per_tile=SIZES, **lvtc):
    """Arguments of a tiny model with all kinds of sizes; boundaries that differ make three stages."""
    return {
        "tokens_per_tile": tokens_per_tile,
        "merge_layer": merge_layer,
        "lvtc_config": {"expand_layer": expand_layer, **GROWS, **lvtc},
    }


def dial_model(text="llama", **kwargs):
    return tiny_model(text, **kwargs)


def dial_batch(config, layouts, *, padding_side="left", seed=0):
    """As `tiny_batch`; a layout has text lengths (int) and the names of tiles' sizes."""
    draw, names = torch.Generator().manual_seed(seed), config.tokens_per_tile
    rows, sizes = [], []
    for layout in layouts:
        row = []
        for part in layout:
            if isinstance(part, str):
                sizes.append(names.index(part))
                row += [IMAGE_TOKEN] * config.sizes[sizes[-1]].before
            else:
                row += torch.randint(10, config.text_config.vocab_size, (part,), generator=draw).tolist()
        rows.append(torch.tensor(row))
    padded = pad_sequence([row + 1 for row in rows], batch_first=True, padding_side=padding_side)
    batch = {"input_ids": torch.where(padded > 0, padded - 1, PAD), "attention_mask": (padded > 0).long()}
    if sizes:
        pixels = torch.randn(len(sizes), 3, config.tile_size, config.tile_size, generator=draw)
        batch |= {"pixel_values": pixels, "tile_sizes": torch.tensor(sizes)}
    return batch


def split_dial(batch, config):
    """The samples of a batch one by one, without padding."""
    samples, used = [], 0
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True):
        sample, left, start = {"input_ids": ids[mask][None]}, int((ids == config.image_token_id).sum()), used
        while left:
            left -= config.sizes[batch["tile_sizes"][used]].before
            used += 1
        if used > start:
            sample |= {name: batch[name][start:used] for name in ("pixel_values", "tile_sizes")}
        samples.append(sample)
    return samples


def _projector(model, name, side):
    """The one file's projector with the parameters that the package has for windows of this side."""
    config, ours = model.config, model.get_submodule(f"model.{name}")
    kind, first = config.projectors[name]
    settings = one_file.SimpleNamespace(
        **config.projector_config.to_dict(),
        c=config.vision_config.hidden_size,
        d=config.text_config.hidden_size,
        s=config.patch_grid,
    )
    with torch.device("meta"):
        projector = one_file.build_projector(settings, kind, side)
    own = dict(ours.named_parameters())
    for parameter, _ in list(projector.named_parameters()):
        owner, _, leaf = parameter.rpartition(".")
        of_size = own.get(f"sizes.{side}.{parameter}") if side != first else None
        setattr(projector.get_submodule(owner), leaf, own[parameter] if of_size is None else of_size)
    return projector


def _mean(tile, before, after):
    if not after:
        return tile[:0]
    grid, side = tile.view(isqrt(before), isqrt(before), -1), isqrt(before) // isqrt(after)
    lines = range(0, isqrt(before), side)
    return torch.stack([grid[y : y + side, x : x + side].mean((0, 1)) for y in lines for x in lines])


def _source(child, before, after):
    """The place in its tile of the first token that a token after the boundary is made of."""
    n1, n2 = isqrt(before), isqrt(after)
    return (child // n2 * n1 // n2) * n1 + child % n2 * n1 // n2


def dial_logits(model, input_ids, pixel_values=None, tile_sizes=None, merge=_mean):
    """Logits of one sample's text rows, (rows, vocabulary), by a loop over segments: no cache, no masks, no row maps.

    Returns:
        The logits, and the number of rows in each layer.
    """
    config, language_model = model.config, model.model.language_model
    plain = {**config.to_dict(), "lvtc_config": None}
    with torch.device("meta"):
        reference = one_file.InternVLX({name: plain[name] for name in plain if name != "tokens_per_tile"})
    reference.vision_tower, reference.language_model = model.model.vision_tower, language_model
    text = config.text_config
    attention, text._attn_implementation = text._attn_implementation, "sdpa"
    features = [] if pixel_values is None else reference.encode(pixel_values)
    sizes = [config.sizes[int(index)] for index in (() if tile_sizes is None else tile_sizes)]
    lvtc, embeddings = config.lvtc_config, language_model.embed_tokens(input_ids)

    def project(name, tile, tokens):
        return one_file.project(
            _projector(model, name, config.patch_grid // isqrt(tokens)), features[tile : tile + 1]
        )[0]

    segments, positions, at, tile = [], [], 0, 0  # (rows, tile or None), and the position of each row
    while at < len(input_ids):
        if int(input_ids[at]) == config.image_token_id:
            segments.append((project("multi_modal_projector", tile, sizes[tile].before), tile))
            at += sizes[tile].before
            tile += 1
        else:
            segments.append((embeddings[at : at + 1], None))
            at += 1
    positions = list(torch.arange(at).split([len(rows) for rows, _ in segments]))
    lengths = []
    for index, layer in enumerate(language_model.layers):
        gained = 0
        for number, (rows, tile) in enumerate(segments):
            positions[number] = positions[number] + gained
            size = None if tile is None else sizes[tile]
            if size is None or size.boundary != index:
                if size is not None and size.has_lvtc and index < size.boundary and index in lvtc.insertion_layers:
                    lr = f"lvtc.lr_projectors.{lvtc.insertion_layers.index(index)}"
                    segments[number] = (rows + project(lr, tile, size.before), tile)
                continue
            where, places = positions[number], None
            if size.has_lvtc:
                grown = one_file.upsample2d(rows, isqrt(size.before), isqrt(size.after), lvtc.upsample_mode)
                segments[number] = (grown + project("lvtc.hr_projector", tile, size.after), tile)
            else:
                merged = merge(rows, size.before, size.after)
                if isinstance(merged, tuple):
                    merged, places = merged
                segments[number] = (merged, tile)
            if size.has_lvtc and lvtc.expanded_positions == "counted":
                positions[number] = where[:1] + torch.arange(size.after)
                gained += size.after - size.before
            else:
                children = torch.arange(size.after)
                places = _source(children, size.before, size.after) if places is None and size.after else places
                positions[number] = where[places] if size.after else where[:0]
        rows = torch.cat([rows for rows, _ in segments])
        lengths.append(len(rows))
        rows = reference.run_layer(index, layer, rows, torch.cat(positions))
        parts = rows.split([len(own) for own, _ in segments])
        segments = [(own, tile) for own, (_, tile) in zip(parts, segments, strict=True)]
    text._attn_implementation = attention
    rows = torch.cat([rows for rows, tile in segments if tile is None])
    return model.lm_head(language_model.norm(rows)), lengths
