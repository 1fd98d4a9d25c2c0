"""A real S3 server (moto's) in a process of its own, which counts the requests it gets.

Prints its port. ``GET /_count`` tells the requests so far, itself not included.
"""

import itertools
import logging

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class Counting:
    def __init__(self, app):
        self.app = app
        self.numbers = itertools.count()
        self.requests = 0

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] == "/_count":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"%d" % self.requests]
        self.requests = next(self.numbers) + 1
        return self.app(environ, start_response)


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = Counting(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    print(server.server_port, flush=True)
    server.serve_forever()
