// Broken checkpoints: each row changes a good one on disk and lists what the error must name.

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type HeaderEntry, safetensorsFile, safetensorsParts, writeConfig } from '../support/checkpoints';
import type { Checkpoint } from '../support/reference_model';

export type Header = Record<string, HeaderEntry & Record<string, unknown>>;

export interface Break {
  name: string;
  /** Breaks the checkpoint in `directory`. */
  apply(directory: string, checkpoint: Checkpoint): void;
  code?: 'ERR_INVALID_CHECKPOINT' | 'ERR_UNSUPPORTED_MODEL';
  /** Each must be in the message. */
  names: (string | RegExp)[];
  shards?: number;
  llama?: boolean;
}

export const norm = 'model.norm.weight';
export const kProj = 'model.layers.1.self_attn.k_proj.weight';
export const file = 'model.safetensors';

/** Rewrites model.safetensors after a change to its parts. */
export function rewrite(
  change: (
    header: Header,
    data: Uint8Array,
  ) => undefined | { header?: string; data?: Uint8Array; headerLength?: bigint },
) {
  return (directory: string, checkpoint: Checkpoint): void => {
    const { header, data } = safetensorsParts(checkpoint.tensors);
    const changed = change(header as Header, data) ?? {};
    writeFileSync(
      join(directory, file),
      safetensorsFile(changed.header ?? JSON.stringify(header), changed.data ?? data, changed.headerLength),
    );
  };
}

/** Changes fields of one tensor's header entry. */
export const entry = (fields: Record<string, unknown>, tensor = kProj) =>
  rewrite((header) => {
    Object.assign(header[tensor] as object, fields);
    return undefined;
  });

export const raw =
  (bytes: string | Uint8Array, name = file) =>
  (directory: string): void =>
    writeFileSync(join(directory, name), bytes);

export const config =
  (fields: Record<string, unknown>) =>
  (directory: string, checkpoint: Checkpoint): void =>
    writeConfig(directory, { ...checkpoint.config, ...fields });

export const index =
  (change: (map: Record<string, unknown>, whole: Record<string, unknown>) => unknown) =>
  (directory: string, checkpoint: Checkpoint): void => {
    const weight_map: Record<string, unknown> = {};
    [...checkpoint.tensors.keys()].forEach((name, i) => {
      weight_map[name] = `model-${(i % 2) + 1}-of-2.safetensors`;
    });
    const whole: Record<string, unknown> = { metadata: {}, weight_map };
    const changed = change(weight_map, whole) ?? whole;
    writeFileSync(
      join(directory, 'model.safetensors.index.json'),
      typeof changed === 'string' ? changed : JSON.stringify(changed),
    );
  };

export const headerBytes = (text: string) => rewrite(() => ({ header: text }));
