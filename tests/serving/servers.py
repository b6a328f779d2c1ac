"""Runs a small server that answers as it is told, well or badly."""

import http.server
import json
import socket
import struct
import threading

PATH = '/v1/models/toys'


class Reset:
    """An answer that never comes: the connection is reset."""


class Server:
    """A context that runs a server on this machine.

    Args:
      *answers: Given one by one, the last again and again; each a status and a body (bytes, or what becomes JSON), a
        function from the request to these, or `Reset`.

    Attributes:
      url: The address of the model.
      requests: The paths and bodies that came in.
    """

    def __init__(self, *answers):
        self.requests, self._answers = [], list(answers)
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
                server.requests.append((self.path, body))
                answer = server._answers.pop(0) if len(server._answers) > 1 else server._answers[0]
                if answer is Reset:
                    # Closed at once, with what is unsent dropped: the other side reads ECONNRESET.
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                    self.connection.close()
                    return
                code, content = answer(body) if callable(answer) else answer
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(code)
                self.send_header('Content-Length', str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *unused_arguments):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, *unused_arguments):
                pass  # Whoever asked does not wait any more, or was reset.

        self._server = Quiet(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self._server.server_address[1]}{PATH}'
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *unused_error):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
