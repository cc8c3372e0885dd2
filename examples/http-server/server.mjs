// An OpenAI-compatible endpoint over one model. Requests that run at once are batched by the model itself; this file
// holds what a server owes: limits, a queue, disconnects, slow readers, errors, an orderly end.

import { once } from 'node:events';
import { createServer } from 'node:http';
import { ApiError, answersFor, readRequest, toApiError } from './openai.mjs';

export const defaults = {
  /** Generations at once; each holds pages of the KV cache. */
  maxConcurrent: 16,
  /** Requests that wait for a place, or whose readers have not taken the whole answer yet; past it: 429. */
  maxQueue: 64,
  /** The largest max_tokens. */
  maxTokens: 1024,
  maxBodyBytes: 64 * 1024,
  /** Characters of a prompt for each token of the model's context. More are rejected before they are encoded. */
  maxCharsPerToken: 16,
  maxConnections: 1024,
  /** Connections from one address. */
  maxConnectionsPerPeer: 256,
  /** From a request's arrival to the end of its generation. */
  timeoutMs: 120_000,
  /** A reader that leaves its buffer full for so long is cut off. */
  stallMs: 30_000,
  /** What requests that run get to end by themselves when the server closes. */
  graceMs: 10_000,
};

// For this long the rest of a body is read after the answer, so that a client that still sends reads the answer.
const LINGER_MS = 1000;

/** At most `size` at once; the others wait in the order in which they came. */
class Gate {
  #free;
  #waiting = new Set();

  constructor(size) {
    this.#free = size;
  }

  get waiting() {
    return this.#waiting.size;
  }

  /** Rejects with the signal's reason. */
  async enter(signal) {
    signal.throwIfAborted();
    if (this.#free > 0) return void this.#free--;
    await new Promise((resolve, reject) => {
      const enter = () => {
        signal.removeEventListener('abort', leave);
        resolve();
      };
      const leave = () => {
        this.#waiting.delete(enter);
        reject(signal.reason);
      };
      signal.addEventListener('abort', leave);
      this.#waiting.add(enter);
    });
  }

  leave() {
    const [next] = this.#waiting;
    if (next === undefined) this.#free++;
    else {
      this.#waiting.delete(next);
      next();
    }
  }
}

/**
 * `server`: a node:http server that does not listen yet; `close()`: ends it in order, and resolves when it has.
 * `options`: limits as in `defaults`; `allowedHosts`: more names of this server in the header Host; `directory`: the
 * absolute path of the model, which error messages then do not show.
 */
export function createApp(model, modelName, { allowedHosts = [], directory, ...options } = {}) {
  const limits = { ...defaults, ...options };
  const hosts = new Set(['localhost', '127.0.0.1', '[::1]', ...allowedHosts.map((host) => host.toLowerCase())]);
  const peers = new Map(); // open connections by address
  const gate = new Gate(limits.maxConcurrent);
  const open = new Set(); // requests that are not answered to the last byte
  let running = 0;
  let closing = false;
  let lost = false; // the device: nothing here will work again
  const started = Math.floor(Date.now() / 1000);

  const checkMs = Math.min(1000, Math.ceil(limits.stallMs / 4)); // what a request may come in too late
  const timeouts = { requestTimeout: limits.stallMs, connectionsCheckingInterval: checkMs };
  const server = createServer(timeouts, async (req, res) => {
    res.on('error', () => {}); // what was written to a client that has gone
    try {
      await route(req, res);
    } catch (error) {
      fail(res, error, directory);
    }
  });
  server.maxConnections = limits.maxConnections;
  // Of pipelined requests, an answer whose turn has not come has no `close` of its own, not even when it is destroyed.
  server.on('connection', (socket) => {
    const peer = socket.remoteAddress; // undefined on a Unix socket
    if (peer !== undefined) {
      const count = (peers.get(peer) ?? 0) + 1;
      if (count > limits.maxConnectionsPerPeer) return void socket.destroy();
      peers.set(peer, count);
    }
    socket.on('close', () => {
      if (peers.get(peer) > 1) peers.set(peer, peers.get(peer) - 1);
      else peers.delete(peer);
      for (const { req, res, abort, gone } of open) {
        if (req.socket !== socket) continue;
        res.destroy();
        abort.abort();
        gone.abort();
      }
    });
  });

  /**
   * A web page can reach this server by a name of its own that resolves to this address (DNS rebinding). The browser then
   * sends that name in Host.
   */
  function checkHost(req) {
    const address = server.address();
    if (typeof address !== 'object') return; // browsers do not reach a Unix socket
    const bound = address.family === 'IPv6' ? `[${address.address}]` : address.address;
    const [, host] = /^(\[[^\]]*\]|[^:]*)(?::\d*)?$/.exec((req.headers.host ?? '').toLowerCase()) ?? [];
    if (hosts.has(host) || host === bound) return;
    const message = `the Host ${JSON.stringify(host ?? '')} is not allowed: start the server with --allowed-hosts`;
    throw new ApiError(403, message, { code: 'host_not_allowed' });
  }

  async function route(req, res) {
    checkHost(req);
    const [pathname] = req.url.split('?');
    const card = { id: modelName, object: 'model', created: started, owned_by: 'diffqkv' };
    const routes = {
      '/health': ['GET', () => send(res, closing || lost ? 503 : 200, health())],
      '/v1/models': ['GET', () => send(res, 200, { object: 'list', data: [card] })],
      [`/v1/models/${encodeURIComponent(modelName)}`]: ['GET', () => send(res, 200, card)],
      '/v1/completions': ['POST', () => complete(false, req, res)],
      '/v1/chat/completions': ['POST', () => complete(true, req, res)],
    };
    if (!Object.hasOwn(routes, pathname)) throw new ApiError(404, `there is no ${pathname}`, { code: 'not_found' });
    const [method, answer] = routes[pathname];
    if (req.method !== method) throw new ApiError(405, `${pathname} takes ${method}`, { headers: { allow: method } });
    await answer();
  }

  function health() {
    const { rss, heapUsed } = process.memoryUsage();
    const buffered = [...open].reduce((sum, { res }) => sum + res.writableLength, 0);
    const requests = { running, queued: gate.waiting, open: open.size, bufferedBytes: buffered };
    return {
      status: lost ? 'device lost' : closing ? 'closing' : 'ok',
      ...requests,
      kvCache: model.kvCache,
      rss,
      heapUsed,
    };
  }

  async function complete(chat, req, res) {
    // A web page of another site can send a form or text without asking, but not JSON.
    if (!/^application\/json\s*(;|$)/i.test(req.headers['content-type'] ?? '')) {
      throw new ApiError(415, 'the content type must be application/json', { code: 'unsupported_media_type' });
    }
    const body = await readJson(req, limits.maxBodyBytes);
    if (res.destroyed || req.socket.destroyed) return;
    if (closing) throw new ApiError(503, 'the server is closing', { code: 'closing' });
    if (open.size >= limits.maxConcurrent + limits.maxQueue) {
      const headers = { 'retry-after': '1' };
      throw new ApiError(429, `${open.size} requests are open already`, { code: 'rate_limit_exceeded', headers });
    }
    const abort = new AbortController();
    const { signal } = abort;
    const gone = new AbortController(); // its connection
    const request = { req, res, abort, gone };
    open.add(request);
    res.on('close', () => abort.abort()); // the client has gone, or has all
    const timer = setTimeout(() => {
      abort.abort(new ApiError(504, `not done within ${limits.timeoutMs} ms`, { code: 'timeout' }));
    }, limits.timeoutMs);
    try {
      const { encode, options, stream, includeUsage } = readRequest(model, modelName, chat, body, limits);
      await gate.enter(signal);
      running++;
      // The place is free when the generation has ended, whether or not its reader keeps up.
      const ended = () => {
        clearTimeout(timer);
        running--;
        gate.leave();
      };
      let generation;
      try {
        const tokens = await encode();
        signal.throwIfAborted();
        generation = model.generate(tokens, { ...options, signal });
      } catch (error) {
        ended();
        throw error;
      }
      generation.result.then(ended, ended);
      const answers = answersFor(chat, modelName);
      if (stream) await streamTo(res, generation, answers, includeUsage, signal);
      else {
        const result = await generation.result;
        signal.throwIfAborted();
        send(res, 200, answers.whole(result));
      }
    } catch (error) {
      lost ||= error.code === 'ERR_DEVICE_UNAVAILABLE';
      fail(res, signal.aborted ? signal.reason : error, directory); // why something was aborted is in the signal
    } finally {
      abort.abort();
      clearTimeout(timer);
      if (!res.destroyed) await taken(res, 'close', gone.signal).catch(() => {}); // when its last byte is gone, or the client
      open.delete(request);
    }
  }

  async function streamTo(res, generation, answers, includeUsage, signal) {
    const tokens = generation[Symbol.asyncIterator]();
    let next = await tokens.next(); // what fails before the first token still has a status
    signal.throwIfAborted();
    res.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8', 'cache-control': 'no-cache' });
    const write = async (event) => {
      if (!res.write(`data: ${event}\n\n`)) await taken(res, 'drain', signal);
    };
    const usage = includeUsage ? null : undefined;
    const first = answers.first(usage);
    if (first) await write(JSON.stringify(first));
    for (; !next.done; next = await tokens.next()) {
      const { text, toolCalls } = next.value;
      if (text !== '') await write(JSON.stringify(answers.text(text, usage)));
      if (toolCalls !== undefined) await write(JSON.stringify(answers.toolCalls(toolCalls, usage)));
    }
    signal.throwIfAborted();
    const result = await generation.result;
    await write(JSON.stringify(answers.end(result, usage)));
    if (includeUsage) await write(JSON.stringify(answers.usage(result)));
    res.end('data: [DONE]\n\n');
  }

  /** Waits until the reader has taken what is buffered. To one that does not, the connection is cut, as if it had gone. */
  async function taken(res, event, signal) {
    const stalled = setTimeout(() => res.destroy(), limits.stallMs);
    try {
      await once(res, event, { signal });
    } finally {
      clearTimeout(stalled);
    }
  }

  async function close() {
    closing = true;
    const closed = once(server, 'close');
    server.close();
    const idle = setInterval(() => {
      if (open.size === 0) server.closeAllConnections();
      else server.closeIdleConnections(); // those that were kept alive
    }, 20);
    const cut = setTimeout(() => {
      for (const { abort } of open) abort.abort(new ApiError(503, 'the server is closing', { code: 'closing' }));
      setTimeout(() => server.closeAllConnections(), 200); // those that take nothing
    }, limits.graceMs);
    await closed;
    clearInterval(idle);
    clearTimeout(cut);
  }

  return { server, close };
}

async function readJson(req, maxBytes) {
  const parts = [];
  const check = (bytes) => {
    if (bytes > maxBytes) throw new ApiError(413, `the body may have ${maxBytes} bytes`, { code: 'request_too_large' });
  };
  check(Number(req.headers['content-length'] ?? 0));
  let bytes = 0;
  for await (const part of req.iterator({ destroyOnReturn: false })) {
    bytes += part.length;
    check(bytes);
    parts.push(part);
  }
  try {
    return JSON.parse(Buffer.concat(parts).toString('utf8'));
  } catch {
    throw new ApiError(400, 'the body is not JSON', { code: 'invalid_json' });
  }
}

function send(res, status, body, headers = {}) {
  const text = JSON.stringify(body);
  const all = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text), ...headers };
  const { req } = res;
  const hasBody = req.headers['transfer-encoding'] !== undefined || Number(req.headers['content-length'] ?? 0) > 0;
  if (req.complete || !hasBody) {
    res.writeHead(status, all);
    res.end(text);
    return;
  }
  // The body is not read to its end. Answer, and close the connection.
  res.writeHead(status, { ...all, connection: 'close' });
  res.write(text);
  const end = () => {
    clearTimeout(timer);
    res.end();
  };
  const timer = setTimeout(end, LINGER_MS);
  req.on('end', end).on('close', end).resume();
}

/** `directory`: a path that the message must not show. */
function fail(res, cause, directory) {
  if (res.destroyed || res.req.socket.destroyed || res.writableEnded) return; // nobody is there to hear it
  const error = toApiError(cause, directory);
  if (res.headersSent) res.end(`data: ${JSON.stringify(error.body)}\n\n`);
  else send(res, error.status, error.body, error.headers);
}
