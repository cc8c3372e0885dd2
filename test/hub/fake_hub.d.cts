import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http';

export interface Recorded {
  host: 'hub' | 'cdn';
  method: string;
  url: string;
  headers: IncomingHttpHeaders;
  /** Bytes of the body that were sent. */
  bytes: number;
  closed?: boolean;
}

export interface Context extends Recorded {
  record: Recorded;
  hub: FakeHub;
  request: IncomingMessage;
  response: ServerResponse;
}

export interface FakeModel {
  name: string;
  commit: string;
  files: Map<string, Buffer>;
  /** Replaces the listing of the files. */
  listing?: unknown;
  /** If set, requests for the model need this access token. */
  token?: string;
  safetensors?: unknown;
}

type Files = Record<string, string | Uint8Array>;
type Properties = Partial<Omit<FakeModel, 'name' | 'commit' | 'files'>> & { revision?: string };

export class FakeHub {
  static start(): Promise<FakeHub>;
  readonly endpoint: string;
  readonly cdn: string;
  readonly models: Map<string, FakeModel>;
  requests: Recorded[];
  /** Called first for each request. If it returns true, it has answered. */
  fault: (context: Context) => boolean | Promise<boolean>;
  close(): Promise<void>;
  add(name: string, files: Files, properties?: Properties): string;
  addDirectory(name: string, directory: string, properties?: Properties): string;
  bytesSent(host: 'hub' | 'cdn', part?: string): number;
  json(context: Context, value: unknown, headers?: Record<string, string>): void;
  refuse(context: Context, status: number, code?: string, headers?: Record<string, string>): void;
  send(
    context: Context,
    bytes: Uint8Array,
    options?: {
      headers?: Record<string, string>;
      ignoreRange?: boolean;
      /** Closes the connection after so many bytes, when `beforeStop` has been called and has resolved. */
      stopAfter?: number;
      beforeStop?: (end: number) => Promise<void>;
    },
  ): Promise<void>;
  entry(path: string, bytes: Uint8Array): Record<string, unknown>;
}

export function gitHash(bytes: Uint8Array): string;
