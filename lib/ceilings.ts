import type { NativeCeilingRequest, NativeMatrix } from './addon';
import type { Device } from './device';
import { awaitNative } from './errors';
import { native } from './internal';

export type { NativeCeilingRequest as CeilingRequest, NativeMatrix as Matrix };

/**
 * Measures a limit of the CPU once, on the thread of `device`. bench/ imports this module;
 * index.ts does not export it, so it is not part of the public interface.
 */
export function measureCeiling(device: Device, request: NativeCeilingRequest): Promise<number[]> {
  return awaitNative(() => device[native].measureCeiling(request));
}
