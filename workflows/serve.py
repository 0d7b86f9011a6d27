"""Serve a registered model over HTTP with Ray Serve: send an image, get its mask.

  python workflows/serve.py --workspace RUN          the champion in the MLflow store of RUN, at http://127.0.0.1:8000
  … --model models:/NAME@ALIAS (or models:/NAME/VERSION) --port 8080 --replicas 4 --cpus_per_replica 2

  curl --data-binary @photo.jpg http://127.0.0.1:8000 -o mask.png                  paletted PNG of class ids
  curl --data-binary @photo.jpg 'http://127.0.0.1:8000?overlay=1' -o overlay.jpg   the image with its mask drawn over it

In a browser, the address shows a page to try it. The headers of a response name the classes found (X-Classes) and the time it took
(Server-Timing); an image that can't be used gets an error message as JSON. /healthz is for health checks. There is no login: other
machines can only connect if `host` allows it (0.0.0.0).

Exit codes: 0 stopped by Ctrl-C or SIGTERM; 2 an error in the settings, or there is no such model.
"""

import sys

from workflows import cli
from workflows.settings import CONFIGS, ServeSettings


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments (None: those of the process); returns its exit code."""
    settings, _ = cli.SettingsParser(__doc__ or "", ServeSettings, CONFIGS / "serve.yaml").parse_settings(argv)
    from deconvnet.serving import server
    from deconvnet.serving.ray_serve import ServedModel, check_installed
    from deconvnet.tracking import registry
    from deconvnet.tracking.store import model_store

    check_installed()
    server.check_port_free(settings.host, settings.port)
    store = model_store(settings.workspace, settings.tracking.uri)
    model = ServedModel(
        registry.find(settings.model, store, "model"),
        store,
        settings.replicas,
        settings.cpus_per_replica,
        settings.gpus_per_replica,
        settings.max_pixels,
        settings.max_megabytes * 2**20,
        settings.max_waiting,
    )
    try:
        server.serve(model, settings.host, settings.port, settings.cluster)
    except KeyboardInterrupt:
        print("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
