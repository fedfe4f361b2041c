# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Image processor of InternVL-X: splits images into tiles by RVTC (paper, section 3.3) and normalises them."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TypedDict

import numpy as np
import PIL.Image
import torch
from einops import rearrange
from huggingface_hub.errors import StrictDataclassError
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    is_pil_image,
    is_valid_image,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from .image_files import ImageAccess, open_image
from .image_settings import IMAGE_PROCESSOR, PROCESSOR, ImageSettings, rule_of, split_by_owner
from .image_sources import ALPHA, ArraySource, PillowSource, as_real_tensor, image_size
from .resizing import RESIZE_BACKENDS, TORCH_MODES, Resizer, empty
from .rules import MISSPELT, nearest
from .rvtc import TilePlan, TilingRule

ImageSource = PillowSource | ArraySource


TILE_SETTINGS = ImageSettings.names(IMAGE_PROCESSOR)
_TYPES = {each.name: each.type for each in fields(ImageSettings) if each.name in TILE_SETTINGS}
_TileSettings = TypedDict("_TileSettings", _TYPES, total=False)  # type: ignore[misc]


class InternVLXImageProcessorKwargs(ImagesKwargs, _TileSettings, total=False):
    r"""
    crop_to_patches (`bool`, *optional*, defaults to `True`):
        Split the image into tiles. Otherwise it becomes one tile. (Transformers calls a tile a patch here.) An image
        processor that was made with `do_resize=True`, a `size` and no setting of tiles only resizes, as those of
        transformers do; within an `InternVLXProcessor` it splits. A call that asks for several tiles by `max_patches`
        or `min_patches`, and does not say `crop_to_patches=False` itself, gets them, whatever the processor's own
        setting.
    max_patches (`int` or, in a call, `list[int]`, *optional*, defaults to 6), min_patches, slicing, use_thumbnail:
        See `image_settings.ImageSettings`, whose rules and defaults they have; a list has one number for each image.
    resize_backend (`str`, *optional*, defaults to `"torch"`):
        `"torch"`: torch's 8-bit antialiased resize, bicubic or bilinear. It is three to four times as fast as Pillow's
        and differs from it by one level of 255 in a few pixels per thousand (in images of noise, by two levels in one
        pixel per ten thousand). `"pillow"`: exactly the pixels of InternVL2, with any of Pillow's filters.
    do_exif_transpose (`bool`, *optional*, defaults to `True`):
        Turn images upright according to their EXIF orientation. `False` is InternVL2's behaviour. An image that is
        already upright (as `transformers.image_utils.load_image` returns it) is not changed.
    alpha (`str`, *optional*, defaults to `"white"`):
        How images with transparency are converted to RGB. `"white"` puts them on white. `"drop"` ignores the
        transparency and takes the colours stored below it, as InternVL2 does; a saved processor without this key uses
        `"drop"`.
    jpeg_draft (`bool`, *optional*, defaults to `False`):
        Decode a JPEG file at a half, a quarter or an eighth of its size if that is no smaller than its grid of tiles.
        A photograph of 12 megapixels then takes less than half the time, and its pixels differ by 0.5 to 4 levels of
        255 on average. The number of tiles does not change. Images that are already decoded are not affected.
    """

    crop_to_patches: bool | None
    max_patches: int | list[int] | None
    resize_backend: str | None
    do_exif_transpose: bool | None
    alpha: str | None
    jpeg_draft: bool | None


class InternVLXImageProcessor(PilBackend):
    """Turns images of any kind and size into normalised tiles of one size.

    A call with one image, a list, or a list of lists (one list per sample) returns
    - `pixel_values`, (tiles, 3, H, W) float32: the tiles of all images in order, each image's tiles row by row, its
      thumbnail last,
    - `num_patches`, (images,): the number of tiles of each image.

    An image is a Pillow image of any mode, a numpy array or torch tensor ((H, W, C), (C, H, W) or (H, W); see
    `image_sources.ArraySource` for their values), a path, an http(s) URL, or a base64 string. Images that are not
    decoded yet are decoded one at a time; Pillow images are not modified.
    `do_rescale` multiplies levels of 0 to 255 by `rescale_factor`; without it, images of 0 to 1 keep that range.
    With `do_resize=False`, images must already have the size of a whole grid of tiles. `device="cuda"` resizes on the
    GPU.

    Attributes:
        access: an `ImageAccess`, which limits what strings may name. It belongs to the running program: it is never
            saved to a checkpoint or read from one.

    Raises:
        ValueError: if an image is corrupt, empty, too large, or has an unknown shape or range, or if an argument is
            unknown or contradicts another. The message names the value.
    """

    valid_kwargs = InternVLXImageProcessorKwargs
    model_input_names = ["pixel_values", "num_patches"]
    # makes every save_pretrained copy this file and its siblings into the checkpoint
    _auto_class = "AutoImageProcessor"  # type: ignore[assignment]

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 448, "width": 448}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    crop_to_patches: bool | None = True
    resize_backend = "torch"
    do_exif_transpose = True
    alpha = "white"
    jpeg_draft = False
    access = ImageAccess()
    _rows_first = False  # see `Resizer`

    def __init__(self, **kwargs: Unpack[InternVLXImageProcessorKwargs]):
        self.refuse_misspelt(kwargs)
        super().__init__(**kwargs)  # type: ignore[misc]
        if not isinstance(self.access, ImageAccess):
            raise ValueError(f"access={self.access!r}, expected an ImageAccess.")
        for name in TILE_SETTINGS:
            if isinstance(value := getattr(self, name), list):
                raise ValueError(f"{name}={value}, expected one number; a call may give one for each image.")
        only_resizes = kwargs.get("do_resize") and "size" in kwargs and not _has_tile_settings(kwargs)
        if kwargs.get("crop_to_patches", not only_resizes or None) is None:
            self.crop_to_patches = None  # not set: see `crop_to_patches` above
        self._validate_preprocess_kwargs(**{name: getattr(self, name) for name in self._valid_kwargs_names})

    @classmethod
    def refuse_misspelt(cls, settings: Mapping):
        """Raises `ValueError` for a misspelt setting. Other unknown names are kept, as transformers does."""
        for name in settings.keys() & ImageSettings.names(PROCESSOR):
            raise ValueError(
                f"{name}={settings[name]!r} is a setting of InternVLXProcessor, which knows how many tokens a tile "
                "has. Give it to the processor, beside the image processor's settings."
            )
        known = [*cls.valid_kwargs.__annotations__, "access"]
        refuse_near(known, [name for name in settings if not hasattr(cls, name)], "the image processor")

    @classmethod
    def from_dict(cls, image_processor_dict: dict, **kwargs):
        # `AutoProcessor` passes on the processor's own arguments, too
        cls.refuse_misspelt(split_by_owner(kwargs)[0])
        saved = {"alpha": "drop"} | {name: value for name, value in image_processor_dict.items() if name != "access"}
        if "access" in kwargs:
            saved["access"] = kwargs.pop("access")
        if _asks_for_tiles(kwargs):
            saved["crop_to_patches"] = True  # unless `kwargs` say otherwise
        return super().from_dict(saved, **kwargs)

    def to_dict(self) -> dict:
        settings = super().to_dict()
        settings.pop("access", None)
        return settings

    def preprocess(self, images: ImageInput, *args, **kwargs: Unpack[InternVLXImageProcessorKwargs]) -> BatchFeature:
        self.refuse_misspelt({name: value for name, value in kwargs.items() if name not in self._valid_kwargs_names})
        try:
            return super().preprocess(images, *args, **self._decide_cropping(kwargs))
        except StrictDataclassError as error:  # transformers' check of the arguments' types
            raise ValueError(str(error)) from error

    def change_tiling(self, **settings):
        """Changes settings of tiles for all calls. It means what the same arguments mean in a call.

        Raises:
            ValueError: if one of them is misspelt or out of range. Nothing is changed then.
        """
        self.tiling_rule(settings)
        for name, value in self._decide_cropping(settings).items():
            setattr(self, name, value)

    def _decide_cropping(self, kwargs: Mapping) -> dict:
        is_asked = _asks_for_tiles(kwargs) or (self.crop_to_patches is None and _has_tile_settings(kwargs))
        if is_asked and kwargs.get("crop_to_patches") is None:
            return {**kwargs, "crop_to_patches": True}
        return dict(kwargs)

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict | None = None) -> int:
        """Number of tiles of an upright image of `height` x `width` pixels, including the thumbnail.

        Args:
            images_kwargs: arguments of a call that override the processor's settings.

        Raises:
            ValueError: if one of them is misspelt or out of range.
        """
        return self.tiling_rule(images_kwargs).plan(width, height).num_tiles

    def tiling_rule(self, images_kwargs: Mapping | None = None) -> TilingRule:
        """How a call splits its images into tiles.

        Args:
            images_kwargs: arguments of the call that override the processor's settings.

        Raises:
            ValueError: if one of them is misspelt or out of range, or if `max_patches` is a list.
        """
        self.refuse_misspelt(images_kwargs or {})
        kwargs = {name: getattr(self, name) for name in self._valid_kwargs_names}
        kwargs |= self._decide_cropping(images_kwargs or {})
        kwargs = self._standardize_kwargs(**kwargs)
        self._validate_preprocess_kwargs(**kwargs)
        return self._tiling_rule(**kwargs)

    def upright_size(
        self, image: PIL.Image.Image | np.ndarray | torch.Tensor, images_kwargs: Mapping
    ) -> tuple[int, int]:
        """(width, height) of an image, opened but not decoded, as a call with these arguments sees it."""
        upright = images_kwargs.get("do_exif_transpose")
        upright = self.do_exif_transpose if upright is None else upright
        return image_size(image, upright, images_kwargs.get("input_data_format"))

    def fetch_images(self, image_url_or_urls):
        """Opens paths, URLs and base64 strings, as `access` allows, and returns other images unchanged. Keeps the
        nesting.

        Unlike the inherited method, it decodes nothing and leaves the EXIF orientation to `preprocess`.
        """
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, str | os.PathLike):
            return open_image(image_url_or_urls, self.access)
        if not is_valid_image(image_url_or_urls):
            raise ValueError(
                f"An image is a {type(image_url_or_urls).__name__}, expected a Pillow image, numpy array, torch "
                "tensor, path, URL or base64 string."
            )
        if is_pil_image(image_url_or_urls):
            return image_url_or_urls
        array = as_real_tensor(image_url_or_urls)
        return array[None] if array.ndim == 2 else array

    def process_image(  # type: ignore[override]
        self,
        image: ImageInput,
        do_convert_rgb: bool = False,
        do_exif_transpose: bool = False,
        input_data_format: str | ChannelDimension | None = None,
        alpha: str | None = None,
        **kwargs,
    ) -> ImageSource:
        """Wraps one image so that its parts can be read, upright and as 8-bit levels. It is decoded on the first
        read.
        """
        alpha = alpha or self.alpha
        if isinstance(image, PIL.Image.Image):
            return PillowSource(image, upright=do_exif_transpose, convert_rgb=do_convert_rgb, alpha=alpha)
        return ArraySource(image, convert_rgb=do_convert_rgb, input_data_format=input_data_format, alpha=alpha)

    def _standardize_kwargs(self, **kwargs) -> dict:  # type: ignore[override]
        """Replaces None by the processor's own value in the arguments that this class adds."""
        for name in InternVLXImageProcessorKwargs.__annotations__.keys() - ImagesKwargs.__annotations__.keys():
            if kwargs.get(name) is None:
                kwargs[name] = getattr(self, name)
        return super()._standardize_kwargs(**kwargs)

    def _validate_preprocess_kwargs(self, **kwargs):
        super()._validate_preprocess_kwargs(**kwargs)
        limits = kwargs.get("max_patches")
        for limit in limits if isinstance(limits, list) else [limits]:
            own = kwargs | {"max_patches": limit}
            ImageSettings(**{name: own[name] for name in TILE_SETTINGS if name in own})
            self._tiling_rule(**own)
        backend, resample = kwargs["resize_backend"], kwargs["resample"]
        if backend not in RESIZE_BACKENDS:
            raise ValueError(f"resize_backend={backend!r} is unknown, expected one of {', '.join(RESIZE_BACKENDS)}.")
        if backend == "torch" and resample not in TORCH_MODES:
            raise ValueError(
                f"resample={resample!r} is not supported by resize_backend='torch', expected BICUBIC or BILINEAR; "
                "resize_backend='pillow' supports all filters."
            )
        if kwargs["alpha"] not in ALPHA:
            raise ValueError(f"alpha={kwargs['alpha']!r} is unknown, expected one of {', '.join(ALPHA)}.")
        if kwargs["do_rescale"]:
            _require_numbers("rescale_factor", kwargs["rescale_factor"], "finite numbers other than 0", counts=())
        if kwargs["do_normalize"]:
            counts = (1, 3) if kwargs["do_convert_rgb"] else (1, 3, 4)
            _require_numbers("image_mean", kwargs["image_mean"], "finite numbers", counts=counts)
            _require_numbers("image_std", kwargs["image_std"], "finite positive numbers", counts=counts)

    def _tiling_rule(self, size: SizeDict, crop_to_patches: bool, **kwargs) -> TilingRule:
        if not (size and size.height and size.width):
            raise ValueError(f"size={size and dict(size)}, expected a tile's height and width in pixels.")
        rule = rule_of(size.height, size.width, kwargs)
        return rule if crop_to_patches else replace(rule, min_tiles=1, max_tiles=1)

    def _preprocess(  # type: ignore[override]
        self, images: list[ImageSource], *, size: SizeDict, return_tensors: str | TensorType | None, **kwargs
    ) -> BatchFeature:
        plans = self._plans(images, kwargs.pop("max_patches"), size=size, **kwargs)
        num_tiles = [plan.num_tiles for plan in plans]
        device = kwargs["device"] or _common_value([source.device for source in images] or ["cpu"], "devices")
        channels = _common_value([source.channels for source in images] or [3], "numbers of channels")
        shape = (sum(num_tiles), channels, size["height"], size["width"])
        pixel_values = empty(shape, torch.float32, torch.device(device))
        for source, plan, tiles in zip(images, plans, pixel_values.split(num_tiles), strict=True):
            self._write_tiles(tiles, source, plan, **kwargs)
        return _as_feature(pixel_values, num_tiles, return_tensors)

    def _plans(self, images: list[ImageSource], max_patches: int | list[int], **kwargs) -> list[TilePlan]:
        limits = max_patches if isinstance(max_patches, list) else [max_patches] * len(images)
        if len(limits) != len(images):
            raise ValueError(f"max_patches has {len(limits)} numbers for {len(images)} images, expected one for each.")
        rules = {limit: self._tiling_rule(max_patches=limit, **kwargs) for limit in set(limits)}
        return [rules[limit].plan(image.width, image.height) for limit, image in zip(limits, images, strict=True)]

    def _write_tiles(
        self,
        tiles: torch.Tensor,
        source: ImageSource,
        plan: TilePlan,
        do_resize,
        resize_backend,
        resample,
        jpeg_draft,
        **kwargs,
    ):
        """Writes one image's tiles, normalised, into `tiles` (tiles, C, H, W)."""
        height, width = tiles.shape[-2:]
        grid_size = (plan.rows * height, plan.columns * width)
        if not do_resize and (source.height, source.width) != grid_size:
            raise ValueError(
                f"An image measures {source.width}x{source.height} pixels and do_resize is False, expected "
                f"{grid_size[1]}x{grid_size[0]} for its {plan.columns}x{plan.rows} tiles."
            )
        source = source.decoded(grid_size if jpeg_draft else None)
        scale, shift = self._scale_and_shift(source, **kwargs)
        sizes = [grid_size, (height, width)] if plan.has_thumbnail else [grid_size]
        grid, *thumbnail = Resizer(source, resize_backend, resample, tiles.device, self._rows_first)(*sizes)
        grid = rearrange(grid, "c (rows h) (columns w) -> rows columns c h w", h=height, w=width)
        grid_tiles = tiles[: plan.columns * plan.rows].unflatten(0, (plan.rows, plan.columns))
        _write_normalised(grid_tiles, grid, scale, shift)
        for levels in thumbnail:
            _write_normalised(tiles[-1], levels, scale, shift)

    def _scale_and_shift(self, source: ImageSource, do_rescale, rescale_factor, do_normalize, **kwargs):
        """Rescaling and normalising in one step: levels * scale + shift, each (C, 1, 1)."""
        factor = rescale_factor if do_rescale else 1 / 255 if source.is_unit_float else 1
        mean = _for_channels("image_mean", kwargs["image_mean"] if do_normalize else 0.0, source.channels)
        std = _for_channels("image_std", kwargs["image_std"] if do_normalize else 1.0, source.channels)
        with np.errstate(over="ignore"):
            scale, shift = np.stack([factor / std, -mean / std]).astype(np.float32)[..., None, None]
            is_finite = np.isfinite(255 * scale + shift).all()
        if not is_finite:
            raise ValueError(
                f"rescale_factor={factor:g}, image_mean={mean.tolist()} and image_std={std.tolist()} give pixels that "
                "are not finite."
            )
        return scale, shift


for _name in TILE_SETTINGS:
    setattr(InternVLXImageProcessor, _name, ImageSettings.own()[_name])


def refuse_near(known: Sequence[str], names: Iterable[str], owner: str) -> None:
    """Raises `ValueError` for a name that is not a known setting of its owner, but almost one."""
    for name in names:
        if name not in known and (meant := nearest(name, known, MISSPELT)):
            raise ValueError(f"Unknown setting {name!r} of {owner}. Did you mean `{meant}`?")


def _asks_for_tiles(kwargs: Mapping) -> bool:
    most = kwargs.get("max_patches")
    bounds = [kwargs.get("min_patches"), *(most if isinstance(most, list) else [most])]
    return any(isinstance(bound, int) and bound > 1 for bound in bounds)


def _has_tile_settings(kwargs: Mapping) -> bool:
    return any(kwargs.get(name) is not None for name in TILE_SETTINGS)


_NUMBER_CHECKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "finite numbers": np.isfinite,
    "finite numbers other than 0": lambda numbers: np.isfinite(numbers) & (numbers != 0),
    "finite positive numbers": lambda numbers: np.isfinite(numbers) & (numbers > 0),
}


def _require_numbers(name: str, value, kind: str, counts: tuple[int, ...]):
    """One number, or as many as `counts` allows, that pass the check `kind` in float32, in which the pixels are
    computed.
    """
    try:
        numbers = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        numbers = np.full((), np.nan)
    if isinstance(value, str) or not _NUMBER_CHECKS[kind](numbers).all():
        raise ValueError(f"{name}={value!r}, expected {kind}.")
    if numbers.ndim and (numbers.ndim != 1 or numbers.size not in counts):
        expected = f"{', '.join(map(str, counts))} numbers" if counts else "a single number"
        raise ValueError(f"{name}={value!r} has the shape {numbers.shape}, expected {expected}.")


def _for_channels(name: str, value, channels: int) -> np.ndarray:
    if np.size(value) not in (1, channels):
        raise ValueError(
            f"{name}={value!r} has {np.size(value)} numbers, expected one for each of {channels} channels."
        )
    return np.broadcast_to(value, channels)


def _common_value(values: list, name: str):
    if len(set(values)) > 1:
        raise ValueError(f"The images have different {name}, {sorted(map(str, set(values)))}, expected one.")
    return values[0]


def _write_normalised(tiles: torch.Tensor, levels: torch.Tensor, scale: np.ndarray, shift: np.ndarray):
    """Writes levels * scale + shift into `tiles` (..., C, H, W) without a temporary array."""
    if tiles.device.type == "cpu":
        # Numpy stays in one thread: torch's pool stalls for milliseconds if processes share the cores. A single tile
        # stays in the cache.
        array, values = tiles.numpy(), levels.numpy()
        for index in np.ndindex(array.shape[:-3]):
            tile = array[index]
            np.copyto(tile, values[index])
            tile *= scale
            tile += shift
    else:
        factor, offset = (torch.from_numpy(values).to(tiles.device) for values in (scale, shift))
        tiles.copy_(levels).mul_(factor).add_(offset)


def _as_feature(pixel_values: torch.Tensor, num_tiles: list[int], return_tensors) -> BatchFeature:
    values = pixel_values if return_tensors == TensorType.PYTORCH else pixel_values.numpy(force=True)
    tiles = list(values) if return_tensors is None else values
    return BatchFeature({"pixel_values": tiles, "num_patches": num_tiles}, tensor_type=return_tensors)
