"""A verifier of your own, as a service: Mulligan's kind `webhook` asks it about each answer. Standard library only.

    WEBHOOK_SECRET=whsec_... python webhook_verifier.py [port]

It listens on 127.0.0.1 (port 8090); put TLS in front of it (nginx, Caddy, a cloud's load balancer) to be asked from
elsewhere. What to change is `verify`; what to keep is everything above it: the signature is what tells that Mulligan
asks.
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_BODY_BYTES = 8 * 2**20
MAX_AGE_S = 300


def decode_secret(secret: str) -> bytes:
    """Turn the secret into the key: base64 after `whsec_`, else the text itself."""
    return base64.b64decode(secret.removeprefix("whsec_")) if secret.startswith("whsec_") else secret.encode()


def is_signed(headers: Any, body: bytes, key: bytes, now_s: float) -> bool:
    """Check the signature over the very bytes that came, and that it was made within five minutes of now."""
    message_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not timestamp.isascii() or not timestamp.isdigit() or abs(now_s - int(timestamp)) > MAX_AGE_S:
        return False
    digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    expected = f"v1,{base64.b64encode(digest).decode()}".encode()
    given = headers.get("webhook-signature", "").encode().split(b" ")  # one for each key while keys change
    return any(hmac.compare_digest(one, expected) for one in given)


class Verdicts:
    """Remembers what was said to each id: what is repeated, by a retry or by a thief, is not judged twice."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, bytes]] = {}
        self._lock = threading.Lock()

    def find(self, message_id: str) -> bytes | None:
        """Find what was said; forget what is older than a signature may be."""
        with self._lock:
            oldest_s = time.monotonic() - 2 * MAX_AGE_S
            while self._said and next(iter(self._said.values()))[0] < oldest_s:
                del self._said[next(iter(self._said))]
            said = self._said.get(message_id)
            return said[1] if said else None

    def keep(self, message_id: str, said: bytes) -> None:
        """Keep what was said."""
        with self._lock:
            self._said[message_id] = (time.monotonic(), said)


class Receiver(BaseHTTPRequestHandler):
    """Answers questions over HTTP/1.1, so that connections are kept."""

    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds that a client may say nothing
    key = b""
    verdicts = Verdicts()

    def do_POST(self) -> None:
        """Judge one answer: 200 and a verdict, or a status that says why there is none."""
        length = self.headers.get("content-length", "")
        if not length.isascii() or not length.isdigit() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            self._say(413, {"error": "the body is too long, or does not say how long it is"})
            return
        body = self.rfile.read(int(length))
        if not is_signed(self.headers, body, self.key, time.time()):
            self._say(401, {"error": "the signature is not right"})
            return
        message_id = self.headers["webhook-id"]
        said = self.verdicts.find(message_id)
        if said is None:
            asked = json.loads(body)
            said = json.dumps(verify(asked["request"], asked["answer"], asked["args"])).encode()
            self.verdicts.keep(message_id, said)
        self._send(200, said)

    def _say(self, status: int, value: dict[str, Any]) -> None:
        self._send(status, json.dumps(value).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing: answers are nobody else's."""


def verify(request: dict[str, Any], answer: dict[str, Any], args: dict[str, Any]) -> dict[str, Any]:
    """Judge the answer. `request` holds messages and tools, `args` what the client sent for this verifier.

    `reason` is logged; the model sees it only where `safe_for_model` is true and its task says `show: reason`.
    """
    text = answer.get("content") or ""
    missing = [word for word in args.get("words", []) if word.lower() not in text.lower()]
    if missing:
        reason = f"the answer does not say {', '.join(missing)}"
        return {
            "passed": False,
            "score": 1 - len(missing) / len(args["words"]),
            "reason": reason,
            "safe_for_model": True,
        }
    return {"passed": True}


def main() -> None:
    """Serve until interrupted."""
    secret = os.environ.get("WEBHOOK_SECRET", "")
    if not secret:
        sys.exit("set WEBHOOK_SECRET to the secret that Mulligan signs with")
    Receiver.key = decode_secret(secret)
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8090), Receiver)
    print(f"listening on http://127.0.0.1:{server.server_port}/", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
