import { addon, type NativeModelConfig } from '../addon';
import { callNative, invalidCheckpoint } from '../errors';

/** The files that decide whether a model is supported, for which no weights are needed. */
export const configNames = ['config.json', 'generation_config.json'];

/** augQSize may be missing, because only the tensors tell it. */
export type ParsedConfig = Omit<NativeModelConfig, 'augQSize'>;

const MAX_BYTES = 2 ** 20;

/**
 * Parses the contents of config.json and generation_config.json as the loader does, and throws its
 * errors. `name` is the model's in messages.
 */
export function checkConfig(contents: ReadonlyMap<string, Uint8Array>, name: string): ParsedConfig {
  const [config, generationConfig] = configNames.map((file) => {
    const bytes = contents.get(file);
    if (bytes !== undefined && bytes.length > MAX_BYTES)
      throw invalidCheckpoint(
        `${name}/${file}`,
        `${bytes.length} bytes; the limit is ${MAX_BYTES}`,
      );
    return bytes && Buffer.from(bytes).toString();
  });
  return callNative(() =>
    addon().parseConfig({ directory: name, config: config ?? '', generationConfig }),
  );
}
