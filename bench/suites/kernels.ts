// Suite kernels: each operator of lib/kernels.ts at the shapes of Sigma-1.5B, for 1, 8 and 512 tokens.
import { kernels, type Tensor } from '../../lib/index';
import { cacheBytes } from '../arithmetic';
import { lengthName, SIGMA_HEADS, sigma15bConfig } from '../shapes';
import { type Bench, type Cell, isTrial, type Suite } from '../suite';
import { rotations } from '../tensors';
import { decodeWork, prefillWork, rotatedBytes, timeFigure, timeWorks, turnOf, type Work } from '../work';

const DECODE_KV_LEN = 2048;

interface Operator {
  name: string;
  /** Bytes of one set of the inputs that calls alternate between. */
  setBytes: number;
  make(bench: Bench, sets: number): Work;
}

const BF16 = 2;
const MOST_SETS = { full: 64, quick: 16 }; // of activations, which are in a cache in a model too

/** All operators, for a number of tokens. */
function operators(tokens: number, { device, quick }: Bench): Operator[] {
  const trial = isTrial(device);
  const config = sigma15bConfig(1);
  const scale = trial ? 16 : 1; // it is slow
  const hidden = config.hidden_size / scale;
  const ffn = config.intermediate_size / scale;
  const augQ = config.aug_q_dim / scale;
  const vocab = config.vocab_size / (trial || quick ? 16 : 1); // filling the whole table takes seconds
  const { numQHeads, headDimQk } = SIGMA_HEADS;
  const take = ({ pool }: Bench, count: number, ...shape: number[]): Tensor[] => pool.take('bf16', shape, count);

  /** An operator that only reads and writes activations. */
  const small = (name: string, shape: number[], inputs: number, call: Call): Operator => {
    const bytes = shape.reduce((product, axis) => product * axis, BF16);
    return {
      name,
      setBytes: bytes * (inputs + 1),
      make(bench, sets) {
        const all = take(bench, sets * (inputs + 1), ...shape);
        const set = (turn: number) => all.slice((turn % sets) * (inputs + 1), ((turn % sets) + 1) * (inputs + 1));
        return { call: (turn) => call(bench, set(turn)), bytes: bytes * (inputs + 1), under: 'copy' };
      },
    };
  };
  const matmul = (name: string, inFeatures: number, outFeatures: number): Operator => ({
    name: `matmul ${name} ${inFeatures} -> ${outFeatures}`,
    setBytes: BF16 * inFeatures * outFeatures,
    make(bench, sets) {
      const weights = take(bench, sets, outFeatures, inFeatures);
      const x = take(bench, 1, tokens, inFeatures)[0] as Tensor;
      const out = take(bench, 2, tokens, outFeatures)[1] as Tensor;
      return {
        call: (turn) => kernels.matmul({ x, weight: turnOf(weights, turn), out }),
        bytes: BF16 * (inFeatures * outFeatures + tokens * (inFeatures + outFeatures)),
        flops: 2 * tokens * inFeatures * outFeatures,
      };
    },
  });
  const positions = (bench: Bench): Tensor => bench.pool.take('i32', [tokens], 1)[0] as Tensor;

  return [
    matmul('o', hidden, hidden),
    matmul('gate', hidden, ffn),
    matmul('down', ffn, hidden),
    ...(tokens <= 8 && !quick ? [matmul('lm_head', hidden, vocab)] : []),
    {
      name: `augmentedQ ${hidden} -> ${augQ} -> ${hidden}`,
      setBytes: 3 * BF16 * hidden * augQ,
      make(bench, sets) {
        const inner = take(bench, 2 * sets, augQ, hidden);
        const downs = take(bench, sets, hidden, augQ);
        const [x, out] = take(bench, 2, tokens, hidden) as [Tensor, Tensor];
        return {
          call(turn) {
            const set = turn % sets;
            const [gate, up] = inner.slice(2 * set, 2 * set + 2) as [Tensor, Tensor];
            return kernels.augmentedQ({ x, gate, up, down: downs[set] as Tensor, out });
          },
          bytes: BF16 * (3 * hidden * augQ + 2 * tokens * hidden),
          flops: 6 * tokens * hidden * augQ,
        };
      },
    },
    small(`rmsNorm ${hidden}`, [tokens, hidden], 1, ({ pool }, [x, out]) => {
      const weight = pool.take('bf16', [hidden], 1)[0] as Tensor;
      return kernels.rmsNorm({ x: x as Tensor, weight, eps: config.rms_norm_eps, out });
    }),
    small(`gatedActivation ${ffn}`, [tokens, ffn], 2, (_, [gate, up, out]) =>
      kernels.gatedActivation({ gate: gate as Tensor, up: up as Tensor, out }),
    ),
    small(`rope ${numQHeads} heads x ${headDimQk}`, [tokens, numQHeads, headDimQk], 1, (bench, [x, out]) =>
      kernels.rope({ x: x as Tensor, positions: positions(bench), theta: config.rope_theta, out }),
    ),
    {
      name: `embed ${hidden}`,
      setBytes: 2 * BF16 * tokens * hidden,
      make(bench, sets) {
        const table = take(bench, 1, vocab, hidden)[0] as Tensor;
        const outs = take(bench, sets, tokens, hidden);
        const ids = Array.from({ length: sets }, (_, set) =>
          bench.device.tensor(
            'i32',
            [tokens],
            Int32Array.from({ length: tokens }, (_, i) => ((set * tokens + i) * 7919) % vocab),
          ),
        );
        return {
          call: (turn) => kernels.embed({ table, tokens: turnOf(ids, turn), out: turnOf(outs, turn) }),
          bytes: 2 * BF16 * tokens * hidden,
          under: 'copy',
        };
      },
    },
    ...(['i8', 'f8e4m3'] as const).map(
      (dtype): Operator => ({
        name: `quantize ${dtype} of V, ${SIGMA_HEADS.numVHeads} heads x ${SIGMA_HEADS.headDimVo}`,
        setBytes: 2 * cacheBytes({ ...SIGMA_HEADS, numKHeads: 0 }) * tokens,
        make(bench, sets) {
          const { numVHeads, headDimVo } = SIGMA_HEADS;
          const xs = take(bench, sets, 1, tokens, numVHeads, headDimVo);
          const outs = bench.pool.take(dtype, [1, tokens, numVHeads, headDimVo], sets);
          const [scales] = bench.pool.take('bf16', [1, tokens, numVHeads], 1);
          return {
            call: (turn) => kernels.quantize({ x: turnOf(xs, turn), dtype, out: turnOf(outs, turn), scales }),
            bytes: tokens * numVHeads * (BF16 * headDimVo + headDimVo + BF16),
            under: 'copy',
          };
        },
      }),
    ),
    tokens <= 8
      ? {
          name: `attentionDecode over ${lengthName(DECODE_KV_LEN)}`,
          setBytes: tokens * DECODE_KV_LEN * cacheBytes(SIGMA_HEADS),
          make: (bench) =>
            decodeWork(bench, { heads: SIGMA_HEADS, kvLen: trial ? 64 : DECODE_KV_LEN, batchSize: tokens }),
        }
      : {
          name: 'attentionPrefill, causal',
          setBytes: 4 * tokens * numQHeads * headDimQk * BF16,
          make: (bench) => prefillWork(bench, SIGMA_HEADS, tokens, true),
        },
  ];
}

type Call = (bench: Bench, set: Tensor[]) => Promise<unknown>;

const mostSets = ({ quick }: Bench): number => (quick ? MOST_SETS.quick : MOST_SETS.full);

function cell(bench: Bench, tokens: number, { name, setBytes, make }: Operator): Cell {
  const full = `${name}, ${tokens} ${tokens === 1 ? 'token' : 'tokens'}`;
  return {
    name: full,
    seconds: bench.quick ? 0.2 : 1.2,
    bytes: rotatedBytes(bench, setBytes),
    async run() {
      const work = make(bench, rotations(setBytes, bench.device, bench.quick, mostSets(bench)));
      const { us } = await timeWorks(bench, { us: work }, bench.quick ? 0.08 : 0.7);
      const at = { operator: name, tokens };
      return { figures: [timeFigure(bench, work, us, { name: full, group: 'kernels', at }, { unit: 'us' })] };
    },
  };
}

export const kernelsSuite: Suite = {
  description: "each operator at Sigma-1.5B's shapes, for 1, 8 and 512 tokens",
  kinds: ['cuda', 'cpu', 'trial'],
  plan(bench) {
    const trial = isTrial(bench.device);
    const counts = trial ? [1, 16] : bench.quick ? [1, 512] : [1, 8, 512];
    return {
      setup: { dtype: 'bf16', tokens: counts, heads: SIGMA_HEADS, rotatedSets: `at most ${mostSets(bench)}` },
      cells: counts.flatMap((tokens) => operators(tokens, bench).map((operator) => cell(bench, tokens, operator))),
    };
  },
};
