import { hubId } from './id';
import { type DownloadOptions, downloadModel } from './snapshot';

export { type CachedSnapshot, listSnapshots } from './cache';
export { checkConfig } from './check_config';
export { hubId, idText, type ModelId, parseModelId } from './id';
export { type Inspection, inspectDirectory, inspectModel } from './inspect';
export { hubSettings } from './settings';
export { type DownloadOptions, type DownloadProgress, downloadModel } from './snapshot';

/** The directory of a model: `source` itself, or where the hub's model of this id is downloaded. */
export async function modelDirectory(source: string, options: DownloadOptions): Promise<string> {
  const id = await hubId(source);
  return id === null ? source : downloadModel(id, options);
}
