// The limits of the CPU, measured by the native module on the threads of the device. It keeps its buffers until the
// device is disposed, so that limits can be measured between the figures.
import { type Matrix, measureCeiling } from '../lib/ceilings';
import type { Device } from '../lib/index';
import { type Stats, summarize } from './measure';

/** Milliseconds of one matrix, one sample for each of its weights. */
export interface LinearTimes {
  packedMs: number[];
  plainMs: number[];
}

export interface ReadPattern {
  name: string;
  streams: number;
  prefetchBytes: number;
}

/** Which of these is fastest depends on the machine. */
export const READ_PATTERNS: readonly ReadPattern[] = [
  { name: '1 stream', streams: 1, prefetchBytes: 0 },
  { name: '2 streams, prefetch 1 KiB', streams: 2, prefetchBytes: 1024 },
  { name: '4 streams', streams: 4, prefetchBytes: 0 },
  { name: '4 streams, prefetch 512 B', streams: 4, prefetchBytes: 512 },
  { name: '4 streams, prefetch 1 KiB', streams: 4, prefetchBytes: 1024 },
];

export class Ceilings {
  /** Whether linear layers use oneDNN, whose matrix rate then is their limit. */
  readonly usesOnednn: boolean;

  constructor(private readonly device: Device) {
    this.usesOnednn = /^oneDNN/.test(device.info.details.linear ?? '');
  }

  /** GB/s of one read of a buffer larger than the caches. */
  async read({ streams, prefetchBytes }: ReadPattern): Promise<number> {
    return this.one({ what: 'read', streams, prefetchBytes });
  }

  /** GB/s, read and written, of one copy of half of that buffer to the other half. */
  async copy(): Promise<number> {
    return this.one({ what: 'copy' });
  }

  /** GFLOP/s of the CPU's fastest multiply instruction, on registers. */
  async multiply(): Promise<number> {
    return this.one({ what: 'multiply' });
  }

  /** Times of oneDNN, for each matrix with `numWeights` weights in turn. */
  async linear(matrices: readonly Matrix[], numWeights: number): Promise<LinearTimes[]> {
    const ask = { what: 'matrices' as const, matrices, numWeights };
    const packed = await measureCeiling(this.device, { ...ask, layout: 'packed' });
    const plain = await measureCeiling(this.device, { ...ask, layout: 'plain' });
    const own = (times: number[], matrix: number) => times.filter((_, i) => i % matrices.length === matrix);
    return matrices.map((_, i) => ({ packedMs: own(packed, i), plainMs: own(plain, i) }));
  }

  private async one(request: Parameters<typeof measureCeiling>[1]): Promise<number> {
    const [value] = await measureCeiling(this.device, request);
    return value as number;
  }
}

/** Collects bandwidth samples over a run: the limit is the median of the fastest access pattern. */
export class BandwidthMeter {
  private readonly samples = new Map<string, number[]>(READ_PATTERNS.map(({ name }) => [name, []]));

  constructor(private readonly ceilings: Ceilings) {}

  /** One sample of each access pattern. */
  async sample(): Promise<void> {
    for (const pattern of READ_PATTERNS) this.samples.get(pattern.name)?.push(await this.ceilings.read(pattern));
  }

  best(): { pattern: string; gbPerS: Stats } {
    const all = [...this.samples].map(([pattern, values]) => ({ pattern, gbPerS: summarize(values) }));
    return all.reduce((best, one) => (one.gbPerS.median > best.gbPerS.median ? one : best));
  }
}
