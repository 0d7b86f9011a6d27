"""Serve a registered model over HTTP with Ray Serve: a photograph in, its mask out.

  python workflows/serve.py --workspace RUN          the champion that RUN's own MLflow knows, at http://127.0.0.1:8000
  … --model models:/NAME@ALIAS (or models:/NAME/VERSION) --port 8080 --replicas 4 --cpus_per_replica 2

  curl --data-binary @photo.jpg http://127.0.0.1:8000 -o mask.png                  paletted PNG of class ids
  curl --data-binary @photo.jpg 'http://127.0.0.1:8000?overlay=1' -o overlay.jpg   the photograph with its labels over it

A browser at that address gets a page to try it on. Answers name in their headers what was found (X-Classes) and how long it took
(Server-Timing); what can't be labelled is answered by a sentence in JSON. /healthz is for who watches. There is no login: other
machines reach it only if `host` says so (0.0.0.0).

Exit codes: 0 stopped by Ctrl-C or SIGTERM; 2 a mistake in the settings, or the model is not there.
"""

import os
import socket
import sys
import time

from deconvnet.serving.ray_serve import WARMUP_SIZE, ServedModel, check_installed, is_serving, measure_latency, serving
from deconvnet.tracking import registry
from deconvnet.tracking.store import model_store
from infra.errors import UserError
from infra.runtime.cluster import connected, may_grow, room
from workflows import cli
from workflows.settings import CONFIGS, ServeSettings

_LOOK_SECONDS = 5.0  # between looks at whether Ray Serve still lives


def main(argv: list[str] | None = None) -> int:
    settings, _ = cli.SettingsParser(__doc__ or "", ServeSettings, CONFIGS / "serve.yaml").parse_settings(argv)
    check_installed()
    check_free(settings.host, settings.port)
    store = model_store(settings.workspace, settings.tracking.uri)
    served = ServedModel(
        registry.find(settings.model, store, "model"), store, settings.replicas, settings.cpus_per_replica,
        settings.gpus_per_replica, settings.max_pixels, settings.max_megabytes * 2**20, settings.max_waiting,
    )  # fmt: skip
    try:
        _serve(served, settings)
    except KeyboardInterrupt:
        print("stopped")
    return 0


def _serve(served: ServedModel, settings: ServeSettings) -> None:
    nodes = settings.cluster.selector("training_nodes" if served.gpus else "data_nodes")
    with connected(settings.cluster):
        _check_room(served, nodes)
        print(f"starting {served.replicas} × {served.title} …", flush=True)
        joined = bool(settings.cluster.address or os.environ.get("RAY_ADDRESS"))
        with serving(served, settings.host, settings.port, nodes, shared_ray=joined):
            url = f"http://{_shown(settings.host)}:{settings.port}"
            height, width = WARMUP_SIZE
            if seconds := measure_latency(url):
                print(f"one photograph of {width}×{height} px takes {seconds:.2f} s ({served.cpus} CPU threads)\n")
            print(f"serving at {url}: open it, or  curl --data-binary @photo.jpg {url} -o mask.png")
            print("Ctrl-C stops it", flush=True)
            try:
                while is_serving():
                    time.sleep(_LOOK_SECONDS)
            except KeyboardInterrupt:
                print("\nstopping", flush=True)
                raise
            raise UserError(
                f"Ray Serve gave {served.title} up: its logs are in Ray's session folder (/tmp/ray/session_latest/logs)"
            )


def check_free(host: str, port: int) -> None:
    """Raise UserError where nobody can listen at host:port. Ray Serve shares a port that another server has, without a word."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"host {host} is not an address of this machine: {error.strerror}") from None
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just gone is no hindrance
        try:
            probe.bind(address)
            probe.listen()
        except OSError as error:
            raise UserError(f"can't listen at {host}:{port}: {error.strerror}: name another --port or --host") from None


def _check_room(served: ServedModel, nodes: dict[str, str]) -> None:
    """Raise UserError where replicas would wait for ever."""
    fits = room(nodes, served.cpus, served.gpus)
    if fits < served.replicas and not may_grow():
        each = f"{served.cpus} CPUs" + (f" and {served.gpus:g} of a GPU" if served.gpus else "")
        raise UserError(
            f"replicas {served.replicas} is more than this Ray has room for, {fits} of {each}: lower it, or give each less"
        )


def _shown(host: str) -> str:
    """The host in an address that this machine can open."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    sys.exit(cli.run(main))
