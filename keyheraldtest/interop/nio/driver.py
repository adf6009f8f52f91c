"""The driver of matrix-nio, an old client that knows nothing of pushed secrets: one JSON request a line on stdin, one JSON
answer a line on stdout."""

import asyncio
import json
import logging
import sys

import nio

UNSUPPORTED = "Received unsupported Olm event of type "


class Ignored(logging.Handler):
    """Counts the decrypted to-device events that nio drops, by type: its log is the only place that tells of them."""

    def __init__(self):
        super().__init__()
        self.types = {}

    def emit(self, record):
        message = record.getMessage()
        if message.startswith(UNSUPPORTED):
            kind = message.removeprefix(UNSUPPORTED)
            self.types[kind] = self.types.get(kind, 0) + 1


class Driver:
    def __init__(self):
        self.client = None
        self.syncing = None
        self.bodies = {}
        self.waiting = {}
        self.ignored = Ignored()
        logging.getLogger("nio.crypto.log").addHandler(self.ignored)

    async def login(self, homeserver, user, password, device, store):
        self.client = nio.AsyncClient(
            homeserver,
            user,
            device_id=device,
            store_path=store,
            config=nio.AsyncClientConfig(encryption_enabled=True, store_sync_tokens=True),
        )
        answer = await self.client.login(password, device_name=device)
        if not isinstance(answer, nio.LoginResponse):
            raise RuntimeError(f"the login was answered {answer}")
        if self.client.should_upload_keys:
            await self.client.keys_upload()
        self.client.add_event_callback(self.on_message, nio.RoomMessageText)
        self.client.add_event_callback(self.on_undecrypted, nio.MegolmEvent)
        self.syncing = asyncio.create_task(self.client.sync_forever(timeout=10000, full_state=True))
        await self.client.synced.wait()
        keys = self.client.olm.account.identity_keys
        return {"device_id": self.client.device_id, "ed25519": keys["ed25519"], "curve25519": keys["curve25519"]}

    async def on_message(self, room, event):
        self.bodies[event.event_id] = event.body

    async def on_undecrypted(self, room, event):
        self.waiting[event.event_id] = event

    async def read(self, room, event, seconds):
        """The message as it came by sync, once it can be decrypted: its room key may come after it."""
        for _ in range(int(seconds * 20)):
            self.alive()
            if event in self.waiting:
                try:
                    self.bodies[event] = self.client.decrypt_event(self.waiting[event]).body
                except nio.EncryptionError:
                    pass
            if event in self.bodies:
                return {"body": self.bodies[event]}
            await asyncio.sleep(0.05)
        raise RuntimeError("the message came, and its key did not" if event in self.waiting else "the message did not come")

    async def state(self):
        self.alive()
        return {"ignored": self.ignored.types}

    def alive(self):
        if self.syncing.done():
            raise RuntimeError(f"its sync has ended: {self.syncing.exception()!r}")

    async def end(self):
        if self.syncing:
            self.syncing.cancel()
        if self.client:
            await self.client.close()


async def main():
    driver = Driver()
    operations = {"login": driver.login, "read": driver.read, "state": driver.state}
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def serve(line):
        request = json.loads(line)
        number, name = request.pop("id"), request.pop("do")
        try:
            answer = {"id": number, "result": await operations[name](**request)}
        except Exception as error:  # whatever it is, the harness is to hear of it
            answer = {"id": number, "error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    serving = set()
    while line := await reader.readline():
        task = asyncio.create_task(serve(line))
        serving.add(task)
        task.add_done_callback(serving.discard)
    await driver.end()


logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
asyncio.run(main())
