// A server on loopback that speaks the API of the Hugging Face hub, and a second one, its CDN, that
// has the contents of files in LFS. fake_hub.d.cts has the types.
//
//   node test/hub/fake_hub.cjs ORG/NAME DIRECTORY   serves a directory, and prints the endpoint

const { createHash, randomBytes } = require('node:crypto');
const { once } = require('node:events');
const { readdirSync, readFileSync } = require('node:fs');
const { createServer } = require('node:http');
const { join } = require('node:path');

const digest = (algorithm, ...parts) => parts.reduce((hash, part) => hash.update(part), createHash(algorithm)).digest('hex');
const gitHash = (bytes) => digest('sha1', `blob ${bytes.length}\0`, bytes);
const isLfs = (path) => /\.(safetensors|bin|gguf)$|^tokenizer\.json$/.test(path);

/** Waits until the client has read, or closed the connection. */
const drained = (response) =>
  new Promise((resolve) => {
    const done = () => {
      response.off('drain', done).off('close', done);
      resolve();
    };
    response.on('drain', done).on('close', done);
    if (response.destroyed) done();
  });

class FakeHub {
  /** `name@revision` or `name@commit` to { commit, files, gated, private }. */
  models = new Map();
  requests = [];
  /** Called first for each request. If it returns true, it has answered. */
  fault = () => false;
  #servers = [];

  static async start() {
    const hub = new FakeHub();
    const start = async (host, handle) => {
      const server = createServer((request, response) => {
        const record = { host, method: request.method, url: request.url, headers: request.headers, bytes: 0 };
        hub.requests.push(record);
        response.on('close', () => {
          record.closed = true;
        });
        const context = { ...record, record, hub, request, response };
        Promise.resolve(hub.fault(context)).then((answered) => answered || handle.call(hub, context));
      });
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
      hub.#servers.push(server);
      return `http://127.0.0.1:${server.address().port}`;
    };
    hub.endpoint = await start('hub', hub.#hub);
    // huggingface_hub takes 127.0.0.1 with another port for the hub.
    hub.cdn = (await start('cdn', hub.#cdn)).replace('127.0.0.1', 'localhost');
    return hub;
  }

  async close() {
    for (const server of this.#servers) {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
  }

  /** Adds a commit. Returns its id. */
  add(name, files, { revision = 'main', ...properties } = {}) {
    const contents = new Map(Object.entries(files).map(([path, bytes]) => [path, Buffer.from(bytes)]));
    const commit = digest('sha1', name, randomBytes(8));
    const model = { name, commit, files: contents, listing: undefined, ...properties };
    this.models.set(`${name}@${revision}`, model).set(`${name}@${commit}`, model);
    return commit;
  }

  addDirectory(name, directory, options) {
    const files = readdirSync(directory, { withFileTypes: true }).filter((entry) => entry.isFile());
    return this.add(name, Object.fromEntries(files.map((f) => [f.name, readFileSync(join(directory, f.name))])), options);
  }

  /** Bytes of bodies that a host has sent for requests of a path. */
  bytesSent(host, part = '') {
    const matching = this.requests.filter((r) => r.host === host && r.url.includes(part));
    return matching.reduce((sum, { bytes }) => sum + bytes, 0);
  }

  json({ record, response }, value, headers = {}) {
    const text = typeof value === 'string' ? value : JSON.stringify(value);
    record.bytes += text.length;
    response.writeHead(200, { 'content-type': 'application/json', ...headers }).end(text);
  }

  refuse({ response }, status, code = undefined, headers = {}) {
    response.writeHead(status, { ...(code && { 'x-error-code': code }), ...headers }).end('{"error": "refused"}');
  }

  /** Sends bytes, or the range of them that the request asks for. Counts what the client takes. */
  async send(context, bytes, { headers = {}, ignoreRange = false, stopAfter = Infinity, beforeStop } = {}) {
    const { request, response, record } = context;
    const range = ignoreRange ? null : /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '');
    const start = Number(range?.[1] ?? 0);
    const end = range?.[2] ? Number(range[2]) + 1 : bytes.length;
    if (start > bytes.length) return this.refuse(context, 416);
    response.writeHead(range ? 206 : 200, {
      'content-length': end - start,
      'accept-ranges': 'bytes',
      ...(range && { 'content-range': `bytes ${start}-${end - 1}/${bytes.length}` }),
      ...headers,
    });
    if (request.method === 'HEAD') return response.end();
    for (let at = start; at < end; at += 65536) {
      const part = bytes.subarray(at, Math.min(end, at + 65536, start + stopAfter));
      if (part.length === 0 || response.destroyed) break;
      record.bytes += part.length;
      if (!response.write(part)) await drained(response);
    }
    if (end - start <= stopAfter) return response.end();
    await beforeStop?.(start + stopAfter);
    return response.destroy();
  }

  #find(context, name, revision) {
    const any = [...this.models.values()].find((model) => model.name === name);
    const model = this.models.get(`${name}@${decodeURIComponent(revision)}`);
    const { authorization } = context.headers;
    if (any?.token && authorization !== `Bearer ${any.token}`) this.refuse(context, authorization ? 403 : 401, 'GatedRepo');
    else if (!any) this.refuse(context, 401);
    else if (!model) this.refuse(context, 404, 'RevisionNotFound');
    else return model;
    return undefined;
  }

  #hub(context) {
    const { url, response, request } = context;
    const { pathname, searchParams } = new URL(url, this.endpoint);
    const info = /^\/api\/models\/([^/]+\/[^/]+)\/revision\/([^/]+)$/.exec(pathname);
    const tree = /^\/api\/models\/([^/]+\/[^/]+)\/tree\/([^/]+)$/.exec(pathname);
    const file = /^\/([^/]+\/[^/]+)\/resolve\/([^/]+)\/(.+)$/.exec(pathname);
    const [, name, revision, path] = info ?? tree ?? file ?? [];
    if (name === undefined) return this.refuse(context, 404);
    const model = this.#find(context, name, revision);
    if (!model) return undefined;
    if (info) {
      const siblings = [...model.files.keys()].map((rfilename) => ({ rfilename }));
      const { commit: sha, safetensors } = model;
      return this.json(context, { _id: '1', id: name, sha, siblings, safetensors, lastModified: '2026-01-01T00:00:00.000Z' });
    }
    if (tree) return this.#tree(context, model, searchParams);
    const bytes = model.files.get(decodeURIComponent(path));
    if (!bytes) return this.refuse(context, 404, 'EntryNotFound');
    const headers = { 'x-repo-commit': model.commit };
    if (!isLfs(path)) return this.send(context, bytes, { headers: { ...headers, etag: `"${gitHash(bytes)}"` } });
    const sha256 = digest('sha256', bytes);
    response.writeHead(302, {
      ...headers,
      'x-linked-etag': `"${sha256}"`,
      'x-linked-size': bytes.length,
      location: `${this.cdn}/${sha256}?signature=secret`,
    });
    return response.end(request.method === 'HEAD' ? undefined : 'Found');
  }

  /** In pages of two entries. */
  #tree(context, model, searchParams) {
    const entries = model.listing ?? [...model.files].map(([path, bytes]) => this.entry(path, bytes));
    if (!Array.isArray(entries)) return this.json(context, entries);
    const at = Number(searchParams.get('cursor') ?? 0);
    const next = new URL(context.url, this.endpoint);
    next.searchParams.set('cursor', at + 2);
    const more = at + 2 < entries.length;
    return this.json(context, entries.slice(at, at + 2), more ? { link: `<${next}>; rel="next"` } : {});
  }

  entry(path, bytes) {
    const entry = { type: 'file', path, size: bytes.length, oid: gitHash(bytes) };
    if (!isLfs(path)) return entry;
    return { ...entry, lfs: { oid: digest('sha256', bytes), size: bytes.length, pointerSize: 130 } };
  }

  #cdn(context) {
    const hash = context.url.slice(1, 65);
    const all = [...this.models.values()].flatMap(({ files }) => [...files.values()]);
    const bytes = all.find((candidate) => digest('sha256', candidate) === hash);
    // A CDN rejects credentials of the hub.
    if (!bytes || context.headers.authorization) return this.refuse(context, 400);
    return this.send(context, bytes, { headers: { etag: '"of the CDN"' } });
  }
}

module.exports = { FakeHub, gitHash };

if (require.main === module) {
  const [, , name, directory] = process.argv;
  FakeHub.start().then((hub) => {
    hub.addDirectory(name, directory);
    console.log(hub.endpoint);
    process.stdin.resume().on('end', () => hub.close()); // ends with its parent
  });
}
