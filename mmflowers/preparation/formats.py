"""Name what a file is that can't be read as a photo: an image of another format, camera raw, a video."""

from __future__ import annotations

from typing import Any

# Of the other formats that are converted: Pillow's name of the format, and what to do where Pillow can't read it.
OTHERS = {
    "HEIC": ("HEIF", "HEIC file (iPhone): pip install pillow-heif, or export it as JPEG"),
    "AVIF": ("AVIF", "AVIF file: pip install 'pillow>=11.3', or export it as JPEG"),
    "JPEG 2000": ("JPEG2000", "JPEG 2000 file: install a Pillow with OpenJPEG, or export it as JPEG"),
    "JPEG XL": ("JXL", "JPEG XL file: convert it with djxl photo.jxl photo.png"),
    "PPM": ("PPM", "PPM file: export it as PNG"),
    "TGA": ("TGA", "TGA file: export it as PNG"),
}
# fmt: off
RAW = {
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".k25", ".kdc", ".mef", ".mos",
    ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
}
VIDEO = {
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".webm", ".wmv",
}
EXTENSIONS = {  # of photos, whether they can be read or get a reason
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".heic", ".heif",
    ".hif", ".avif", ".jp2", ".j2k", ".jpf", ".jpx", ".jxl", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", *RAW,
}
# fmt: on

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_PHOTO_BRANDS = (b"mif1", b"msf1", b"miaf")  # of HEIC and of AVIF
_RAW_MAGIC = (b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM", b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"II\x1a\0\0\0HEAPCCDR")
_VIDEO_MAGIC = (b"\x1a\x45\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"FLV\1", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11")
_TIFF_MAGIC = (b"II*\0", b"MM\0*")
_NEW_SUBFILE_TYPE, _SUB_IFDS, _DNG_VERSION = 254, 330, 50706


def other_format(data: bytes) -> str:
    """Return the key of ``OTHERS`` that a file's first bytes belong to; empty if none does."""
    if data[4:8] == b"ftyp":
        brands = _brands(data)
        if brands[0] in (b"avif", b"avis"):
            return "AVIF"
        if brands[0] in _HEIF_BRANDS:
            return "HEIC"
        if brands[0] in _PHOTO_BRANDS:
            return "AVIF" if b"avif" in brands else "HEIC"
        return ""
    if data.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "JPEG 2000"
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        return "JPEG XL"
    if data[:1] == b"P" and data[1:2] in b"1234567Ff" and data[2:3] in (b" ", b"\t", b"\r", b"\n"):
        return "PPM"
    # TGA has no first bytes of its own. Type 2 is RGB and 3 grey, 10 and 11 the same with run lengths; 1 and 9 have a
    # palette.
    has_depth = len(data) > 18 and data[16] in (8, 16, 24, 32)
    return "TGA" if has_depth and data[1:3] in (b"\0\2", b"\0\3", b"\0\n", b"\0\x0b", b"\1\1", b"\1\t") else ""


def refusal(data: bytes, extension: str = "") -> str:
    """Return what a file is that no decoder opens, for ``files.csv``; empty if that isn't known.

    Args:
        data: Its bytes.
        extension: Of its name, with the dot, in any case.
    """
    extension = extension.lower()
    if data.startswith(_RAW_MAGIC) or data[4:12] == b"ftypcrx " or (data.startswith(_TIFF_MAGIC) and extension in RAW):
        return raw(extension)
    is_media = data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide") and not other_format(data)
    if is_media or data.startswith(_VIDEO_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"AVI "):
        return _video(extension)
    if extension in RAW:
        return raw(extension)
    return _video(extension) if extension in VIDEO else ""


def is_remedied(reason: str) -> bool:
    """Return whether a reason names a format and, after a colon, how to convert it."""
    return reason.startswith("camera raw") or any(reason == remedy for _, remedy in OTHERS.values())


def raw(extension: str = "") -> str:
    """Return the reason for camera raw."""
    name = extension[1:].upper() if extension.lower() in RAW else ""
    return f"camera raw{name and f' ({name})'}: export it as JPEG"


def is_raw_tiff(data: bytes, tags: Any, extension: str = "") -> bool:
    """Return whether a TIFF is camera raw, whose first image is often only a preview.

    Args:
        data: The file.
        tags: Of its first image.
        extension: Of its name.
    """
    is_preview = isinstance(kind := tags.get(_NEW_SUBFILE_TYPE, 0), int) and kind & 1
    return (
        extension.lower() in RAW
        or data[8:10] == b"CR"
        or _DNG_VERSION in tags
        or bool(is_preview and _SUB_IFDS in tags)
    )


def _video(extension: str) -> str:
    name = extension[1:].upper() if extension in VIDEO else ""
    return f"a video{name and f' ({name})'}, not a photo"


def _brands(data: bytes) -> list[bytes]:
    """Return the major brand and the compatible ones of an ISO media file."""
    end = min(int.from_bytes(data[:4], "big"), len(data), 256)
    return [data[8:12], *(data[at : at + 4] for at in range(16, end, 4))]
