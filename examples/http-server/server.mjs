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
  maxConnections: 1024,
  /** From a request's arrival to the end of its generation. */
  timeoutMs: 120_000,
  /** A reader that leaves its buffer full for so long is cut off. */
  stallMs: 30_000,
  /** What requests that run get to end by themselves when the server closes. */
  graceMs: 10_000,
};

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

/** `server`: a node:http server that does not listen yet; `close()`: ends it in order, and resolves when it has. */
export function createApp(model, modelName, options = {}) {
  const limits = { ...defaults, ...options };
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
      fail(res, error);
    }
  });
  server.maxConnections = limits.maxConnections;
  // Of pipelined requests, an answer whose turn has not come has no `close` of its own, not even when it is destroyed.
  server.on('connection', (socket) => {
    socket.on('close', () => {
      for (const { req, res, abort, gone } of open) {
        if (req.socket !== socket) continue;
        res.destroy();
        abort.abort();
        gone.abort();
      }
    });
  });

  async function route(req, res) {
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
      const { tokens, options, stream, includeUsage } = await readRequest(
        ...[model, modelName, chat, body, limits.maxTokens],
      );
      await gate.enter(signal);
      running++;
      const generation = model.generate(tokens, { ...options, signal });
      // The place is free when the generation has ended, whether or not its reader keeps up.
      const ended = () => {
        clearTimeout(timer);
        running--;
        gate.leave();
      };
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
      fail(res, signal.aborted ? signal.reason : error); // why something was aborted is in the signal
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
      if (next.value.text !== '') await write(JSON.stringify(answers.text(next.value.text, usage)));
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
  let bytes = 0;
  for await (const part of req) {
    bytes += part.length;
    if (bytes <= maxBytes) parts.push(part); // the rest is read and dropped: who still sends would not hear an answer
  }
  if (bytes > maxBytes) throw new ApiError(413, `the body may have ${maxBytes} bytes`, { code: 'request_too_large' });
  try {
    return JSON.parse(Buffer.concat(parts).toString('utf8'));
  } catch {
    throw new ApiError(400, 'the body is not JSON', { code: 'invalid_json' });
  }
}

function send(res, status, body, headers = {}) {
  const text = JSON.stringify(body);
  res.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text), ...headers });
  res.end(text);
}

function fail(res, cause) {
  if (res.destroyed || res.req.socket.destroyed || res.writableEnded) return; // nobody is there to hear it
  const error = toApiError(cause);
  if (res.headersSent) res.end(`data: ${JSON.stringify(error.body)}\n\n`);
  else send(res, error.status, error.body, error.headers);
}
