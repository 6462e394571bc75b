"""What /metrics tells, in the form of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)


class Counters:
    """The numbers of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("sdst_requests", "Requests answered", ["method", "route", "status"], registry=own)
        self.request_seconds = Histogram(
            "sdst_request_seconds", "From a request's head to its answer's end", ["route"], registry=own,
            buckets=_SECONDS,
        )  # fmt: skip
        self.refusals = Counter("sdst_refusals", "Requests refused, by error.code", ["code"], registry=own)
        self.queue = Gauge("sdst_queue", "Requests waiting, not yet at the model", ["lane"], registry=own)
        self.running = Gauge("sdst_running", "Requests at the model", ["lane"], registry=own)
        self.receiving = Gauge("sdst_receiving", "Uploads that are being received", registry=own)
        self.stages = Histogram(
            "sdst_stage_seconds", "Seconds of a stage: of the model's, and waiting for it", ["stage"], registry=own,
            buckets=_SECONDS,
        )  # fmt: skip
        self.videos = Gauge("sdst_encoded_videos", "Encoded videos that are kept", registry=own)
        self.video_bytes = Gauge("sdst_encoded_video_bytes", "Memory of the encoded videos", registry=own)
        self.model_starts = Counter("sdst_model_starts", "Starts of the model's process", registry=own)
        self.model_ready = Gauge("sdst_model_ready", "1 when the model's process is ready", registry=own)
