// Decode attention over a long cache: 32/4/16 heads, 32/16/16, and 32/4/16 with selective V.
import { type Device, kernels, type Tensor } from '../../lib/index';
import { BandwidthMeter, type Ceilings } from '../ceilings';
import { type Figure, figure } from '../figure';
import { interleave, mapStats, type Stats } from '../measure';
import { randomBf16 } from '../random';
import { type HeadShape, headsName, SIGMA_HEADS, STD_HEADS } from '../shapes';
import type { Bench } from '../suite';

const KV_LEN = 32768;
const TOP_K = 100;
const BF16_BYTES = 2;
const ROTATION_BYTES = 1.25e9; // of all tensors of one kind, so that no input is in a cache
const QUICK_ROTATION_BYTES = 0.4e9; // K and V together still exceed most caches
const CALLS = 6; // queued together; one sample is their mean

/** Returns its tensors in turn. */
class Rotation {
  private next = 0;

  constructor(private readonly tensors: Tensor[]) {}

  take(): Tensor {
    this.next = (this.next + 1) % this.tensors.length;
    return this.tensors[this.next] as Tensor;
  }
}

class Tensors {
  private readonly all: Tensor[] = [];
  private readonly random = randomBf16(KV_LEN * STD_HEADS.numVHeads * STD_HEADS.headDimVo, 1);

  constructor(
    private readonly device: Device,
    private readonly rotationBytes: number,
  ) {}

  make(shape: number[]): Tensor {
    const count = shape.reduce((product, size) => product * size, 1);
    const tensor = this.device.tensor('bf16', shape, this.random.subarray(0, count));
    this.all.push(tensor);
    return tensor;
  }

  /** Tensors [1, KV_LEN, numHeads, headDim], enough to flush every cache when all are read. */
  rotation(numHeads: number, headDim: number): Rotation {
    const bytes = KV_LEN * numHeads * headDim * BF16_BYTES;
    return new Rotation(
      Array.from({ length: Math.ceil(this.rotationBytes / bytes) }, () => this.make([1, KV_LEN, numHeads, headDim])),
    );
  }

  dispose(): void {
    for (const tensor of this.all) tensor.dispose();
  }
}

/** Bytes of K and V that a call must read. Selective V reads up to TOP_K rows for each Q head. */
function bytesRead({ numQHeads, numKHeads, numVHeads, headDimQk, headDimVo }: HeadShape, selective: boolean): number {
  const vRows = selective ? TOP_K * numQHeads : KV_LEN * numVHeads;
  return (KV_LEN * numKHeads * headDimQk + vRows * headDimVo) * BF16_BYTES;
}

export async function measureAttention({ device, quick, progress, check }: Bench, ceilings: Ceilings) {
  progress(`decode attention over ${KV_LEN} tokens: filling tensors`);
  const tensors = new Tensors(device, quick ? QUICK_ROTATION_BYTES : ROTATION_BYTES);
  const bandwidth = new BandwidthMeter(ceilings);
  try {
    const q = tensors.make([1, SIGMA_HEADS.numQHeads, SIGMA_HEADS.headDimQk]);
    const out = tensors.make([1, SIGMA_HEADS.numQHeads, SIGMA_HEADS.headDimVo]);
    const sigmaK = tensors.rotation(SIGMA_HEADS.numKHeads, SIGMA_HEADS.headDimQk);
    const stdK = tensors.rotation(STD_HEADS.numKHeads, STD_HEADS.headDimQk);
    const v = tensors.rotation(SIGMA_HEADS.numVHeads, SIGMA_HEADS.headDimVo); // the same shape in all variants

    const time = (k: Rotation, selectiveV?: { topK: number }) => async () => {
      const queue = () =>
        Promise.all(
          Array.from({ length: CALLS }, () =>
            kernels.attentionDecode({ q, k: k.take(), v: v.take(), selectiveV, out }),
          ),
        );
      return (await device.time(queue)) / CALLS;
    };
    const rounds = quick ? 5 : 25;
    const onRound = async (round: number) => {
      check();
      if (round > 0 && round % 5 === 0) progress(`decode attention: round ${round} of ${rounds}`);
      await bandwidth.sample();
    };
    const variants = { sigma: time(sigmaK), std: time(stdK), selective: time(sigmaK, { topK: TOP_K }) };
    const ms = await interleave(variants, { warmUp: 2, rounds, onRound });
    const limit = bandwidth.best();
    return {
      setup: { kvLen: KV_LEN, batchSize: 1, dtype: 'bf16', heads: SIGMA_HEADS, topK: TOP_K, callsPerSample: CALLS },
      ceilings: { readBandwidth: limit },
      figures: [
        bandwidthFigure(SIGMA_HEADS, ms.sigma, limit.gbPerS, { on: 'share', atLeast: 0.75 }),
        bandwidthFigure(STD_HEADS, ms.std, limit.gbPerS, null),
        ratioFigure(
          `time of ${headsName(SIGMA_HEADS)} / time of ${headsName(STD_HEADS)}`,
          0.68,
          ms.sigma,
          ms.std,
          [SIGMA_HEADS, false],
          [STD_HEADS, false],
        ),
        ratioFigure(
          `time of selective V, top ${TOP_K} / time without`,
          0.35,
          ms.selective,
          ms.sigma,
          [SIGMA_HEADS, true],
          [SIGMA_HEADS, false],
        ),
      ],
    };
  } finally {
    tensors.dispose();
  }
}

function bandwidthFigure(heads: HeadShape, ms: Stats, limit: Stats, target: Figure['target']): Figure {
  const convert = (value: number) => bytesRead(heads, false) / value / 1e6;
  return figure({
    name: `decode attention, 32k tokens, ${headsName(heads)}`,
    value: convert(ms.median),
    unit: 'GB/s',
    better: 'more',
    limit: limit.median,
    limitName: 'read bandwidth',
    target,
    samples: { ms, gbPerS: mapStats(ms, convert), limit },
  });
}

function ratioFigure(
  name: string,
  atMost: number,
  ms: Stats,
  baseMs: Stats,
  read: [HeadShape, boolean],
  baseRead: [HeadShape, boolean],
): Figure {
  return figure({
    name,
    value: ms.median / baseMs.median,
    unit: '',
    better: 'less',
    limit: bytesRead(...read) / bytesRead(...baseRead),
    limitName: 'bytes over bytes',
    target: { on: 'value', atMost },
    samples: { ms, baseMs },
  });
}
