// The driver of matrix-js-sdk: one JSON request a line on stdin, one JSON answer a line on stdout. It does what an
// application on the SDK does (Element Web among them) and looks at the outcome through the SDK's own API. It holds
// several clients, by name. No private key leaves it.
import "fake-indexeddb/auto";
import { createInterface } from "node:readline";
import { BackupDecryptionKey, UserId } from "@matrix-org/matrix-sdk-crypto-wasm";
import { ClientEvent, SyncState, createClient } from "matrix-js-sdk";
import { CryptoEvent, decodeRecoveryKey } from "matrix-js-sdk/lib/crypto-api/index.js";

// The SDK logs to the console, and stdout is the answers' alone.
for (const level of ["debug", "info", "log", "warn", "trace"]) {
    console[level] = (...parts) => console.error(...parts);
}

const clients = new Map();

function client(name) {
    const found = clients.get(name);
    if (!found?.matrix) throw new Error(`there is no open client ${name}`);
    return found;
}

async function until(what, check, seconds = 30) {
    for (const end = Date.now() + seconds * 1000; ; ) {
        const value = await check();
        if (value) return value;
        if (Date.now() > end) throw new Error(`waited in vain for ${what}`);
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
}

const operations = {
    // login makes a new device and opens it.
    async login({ name, homeserver, user, password, device }) {
        const session = await createClient({ baseUrl: homeserver }).loginRequest({
            type: "m.login.password",
            identifier: { type: "m.id.user", user },
            password,
            device_id: device,
            initial_device_display_name: device,
        });
        clients.set(name, { homeserver, session });
        return operations.open({ name });
    },

    // open starts a client from what it keeps, as an application that is opened again.
    async open({ name }) {
        const it = clients.get(name);
        it.matrix = createClient({
            baseUrl: it.homeserver,
            userId: it.session.user_id,
            deviceId: it.session.device_id,
            accessToken: it.session.access_token,
            cryptoCallbacks: {
                async getSecretStorageKey({ keys }) {
                    return it.recoveryKey ? [Object.keys(keys)[0], decodeRecoveryKey(it.recoveryKey)] : null;
                },
            },
        });
        await it.matrix.initRustCrypto({ cryptoDatabasePrefix: name });
        const prepared = new Promise((resolve, reject) =>
            it.matrix.on(ClientEvent.Sync, (state, _, data) => {
                if (state === SyncState.Prepared) resolve();
                if (state === SyncState.Error) reject(data?.error ?? new Error("the first sync failed"));
            }),
        );
        await it.matrix.startClient();
        await prepared;
        const keys = await it.matrix.getCrypto().getOwnDeviceKeys();
        return { device_id: it.session.device_id, ed25519: keys.ed25519, curve25519: keys.curve25519 };
    },

    // close stops a client: it is offline until it is opened again.
    async close({ name }) {
        client(name).matrix.stopClient();
        clients.get(name).matrix = undefined;
    },

    // verify cross-signs the device with the recovery key, and with backup also loads the backup's key from secret
    // storage: what Element does with a recovery key that a person types in. The key is forgotten right after.
    async verify({ name, recovery_key, backup }) {
        const it = client(name);
        const crypto = it.matrix.getCrypto();
        await until("the user's identity to be known", () => crypto.userHasCrossSigningKeys());
        it.recoveryKey = recovery_key;
        try {
            await crypto.bootstrapCrossSigning({
                authUploadDeviceSigningKeys: async () => {
                    throw new Error("the recovery key did not open the user's identity");
                },
            });
            if (backup) {
                await crypto.loadSessionBackupPrivateKeyFromSecretStorage();
                await crypto.checkKeyBackupAndEnable();
            }
        } finally {
            it.recoveryKey = undefined;
        }
        await until("the device to be cross-signed", async () => {
            const status = await crypto.getDeviceVerificationStatus(it.session.user_id, it.session.device_id);
            return status?.crossSigningVerified;
        });
    },

    // state is what the client holds: the public key of the backup key it has, and the version it backs up to.
    async state({ name }) {
        const crypto = client(name).matrix.getCrypto();
        const key = await crypto.getSessionBackupPrivateKey();
        return {
            version: (await crypto.getActiveSessionBackupVersion()) ?? "",
            public_key: key ? BackupDecryptionKey.fromBase64(Buffer.from(key).toString("base64")).megolmV1PublicKey.publicKeyBase64 : "",
        };
    },

    // acquainted waits until the client knows its user's devices, so many of them, and that all are cross-signed.
    async acquainted({ name, devices, seconds }) {
        const { matrix, session } = client(name);
        const crypto = matrix.getCrypto();
        await until(
            `${devices} cross-signed devices to be known`,
            async () => {
                const known = [...((await crypto.getUserDeviceInfo([session.user_id])).get(session.user_id)?.keys() ?? [])];
                const status = await Promise.all(known.map((device) => crypto.getDeviceVerificationStatus(session.user_id, device)));
                return known.length === devices && status.every((one) => one?.crossSigningVerified);
            },
            seconds,
        );
    },

    // reset makes a new key backup as a person does who asks the application to; the recovery key, for the copy in secret
    // storage, is forgotten right after.
    async reset({ name, recovery_key }) {
        const it = client(name);
        it.recoveryKey = recovery_key;
        try {
            await it.matrix.getCrypto().resetKeyBackup();
        } finally {
            it.recoveryKey = undefined;
        }
        return operations.state({ name });
    },

    // adopted waits until the client holds another key than this and backs up to another version, and is its state then.
    // The client's own events say when to look.
    async adopted({ name, other_than, seconds }) {
        const { matrix } = client(name);
        const events = [CryptoEvent.KeyBackupDecryptionKeyCached, CryptoEvent.KeyBackupStatus];
        let look, timer;
        try {
            return await new Promise((resolve, reject) => {
                look = async () => {
                    try {
                        const now = await operations.state({ name });
                        if (now.public_key && now.version && now.public_key !== other_than.public_key && now.version !== other_than.version) resolve(now);
                    } catch (error) {
                        reject(error);
                    }
                };
                for (const event of events) matrix.on(event, look);
                timer = setTimeout(() => reject(new Error(`${name} has no new backup key`)), seconds * 1000);
                look();
            });
        } finally {
            for (const event of events) matrix.off(event, look);
            clearTimeout(timer);
        }
    },

    // health is what Element asks before it tells a person to set up recovery again.
    async health({ name }) {
        const crypto = client(name).matrix.getCrypto();
        const info = await crypto.getKeyBackupInfo();
        const backup = info && (await crypto.isKeyBackupTrusted(info));
        const crossSigning = await crypto.getCrossSigningStatus();
        return {
            secret_storage_ready: await crypto.isSecretStorageReady(),
            cross_signing_ready: await crypto.isCrossSigningReady(),
            cross_signing_cached: Object.values(crossSigning.privateKeysCachedLocally).every(Boolean),
            backup_trusted: backup?.trusted ?? false,
            backup_key_matches: backup?.matchesDecryptionKey ?? false,
        };
    },

    // restore downloads the whole backup.
    async restore({ name }) {
        const { imported, total } = await client(name).matrix.getCrypto().restoreKeyBackup();
        return { imported, total };
    },

    // read fetches a message and decrypts it; the SDK gets a key that it lacks from the backup by itself.
    async read({ name, room, event, seconds }) {
        const { matrix } = client(name);
        const message = matrix.getEventMapper()(await matrix.fetchRoomEvent(room, event));
        await matrix.decryptEventIfNeeded(message);
        await until(`the message to be readable (${message.decryptionFailureReason ?? "encrypted"})`, () => message.getClearContent() && !message.isDecryptionFailure(), seconds);
        return { body: message.getContent().body };
    },

    // send sends an Olm-encrypted to-device message. The SDK knows the devices of people who share an encrypted room with
    // its user, and keeps no others; what tells it of somebody else is not part of its public API.
    async send({ name, user, device, type, content }) {
        const { matrix } = client(name);
        const crypto = matrix.getCrypto();
        await crypto.getOlmMachineOrThrow().updateTrackedUsers([new UserId(user)]);
        await crypto.outgoingRequestsManager.doProcessOutgoingRequests();
        await until("the other device to be known", async () => (await crypto.getUserDeviceInfo([user])).get(user)?.has(device));
        const batch = await crypto.encryptToDeviceMessages(type, [{ userId: user, deviceId: device }], content);
        if (batch.batch.length !== 1) throw new Error("the message could not be encrypted");
        await matrix.queueToDevice(batch);
    },
};

const input = createInterface({ input: process.stdin });
input.on("line", async (line) => {
    const { id, do: name, ...parameters } = JSON.parse(line);
    let answer;
    try {
        if (!Object.hasOwn(operations, name)) throw new Error(`there is no operation ${name}`);
        answer = { id, result: (await operations[name](parameters)) ?? {} };
    } catch (error) {
        answer = { id, error: `${error.name}: ${error.message}` };
    }
    process.stdout.write(JSON.stringify(answer) + "\n");
});
input.on("close", () => process.exit(0));
