"""How names of video files end."""

from __future__ import annotations

SUFFIXES = (  # without case; the usual ones first
    ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv",
    ".264", ".265", ".3g2", ".apng", ".asf", ".av1", ".dav", ".divx", ".dv", ".f4v", ".gif", ".gxf", ".h264", ".h265",
    ".hevc", ".ivf", ".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".mjpeg", ".mjpg", ".mod", ".mp4v", ".mpe", ".mpv",
    ".mts", ".mxf", ".nsv", ".nut", ".obu", ".ogm", ".qt", ".rm", ".rmvb", ".tod", ".trp", ".vob", ".vro", ".wtv",
    ".xvid", ".y4m",
)  # fmt: skip
