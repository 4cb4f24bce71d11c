"""An S3 server that can answer 500, or be gone for a while; it keeps what it has in memory."""

import logging
import threading
from contextlib import contextmanager

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)


NAME = "survey"


class Bucket:
    """A bucket named ``survey`` on a server of its own; a context manager."""

    def __init__(self) -> None:
        self.application = DomainDispatcherApplication(create_backend_app)
        self.failing, self.failed, self.port = False, 0, 0

    def __enter__(self) -> "Bucket":
        self.start()
        access = {name.lower(): value for name, value in self.environment.items()}
        self._client = boto3.client(
            "s3", endpoint_url=access.pop("aws_endpoint_url"), region_name=access.pop("aws_default_region"), **access
        )
        self._client.create_bucket(Bucket=NAME)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Nobody listens any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ, start_response):
        if self.failing:
            self.failed += 1
            start_response("500 Internal Server Error", [("Content-Length", "0"), ("Connection", "close")])
            return [b""]
        return self.application(environ, start_response)

    @contextmanager
    def broken(self):
        """Every request is answered with 500 within the block."""
        self.failing = True
        try:
            yield
        finally:
            self.failing = False

    def keys(self, prefix: str) -> int:
        """Number of objects below a prefix."""
        return self._client.list_objects_v2(Bucket=NAME, Prefix=prefix)["KeyCount"]

    @property
    def environment(self) -> dict[str, str]:
        """What clients need to find it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "name",
            "AWS_SECRET_ACCESS_KEY": "word",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
