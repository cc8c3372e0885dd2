// Result files with synthetic numbers, in the format that the benchmark writes. Only for tests of
// report and compare.
import { type Figure, figure } from '../../bench/figure';
import type { Result } from '../../bench/report_result';

/** Samples around a median, up to `relative` above and below. */
const around = (median: number, relative = 0.02, count = 7) => ({
  median,
  min: median * (1 - relative),
  max: median * (1 + relative),
  count,
});

interface Made extends Partial<Figure> {
  name: string;
  value: number;
}

/** A figure with samples within 2 % of its value. */
export function made({ name, value, ...rest }: Made): Figure {
  return {
    ...figure({
      name,
      value,
      unit: 'ms',
      better: 'less',
      limit: value * 0.8,
      limitName: 'bytes at the read bandwidth',
      target: null,
      samples: { ms: around(value) },
    }),
    ...rest,
  };
}

const HEADS = { sigma: '32/4/16', std: '32/16/16' };

// Table 15 of the paper, in ns: prefix, STD split and combine, Sigma split and combine.
const TABLE_15 = [
  [2048, 2.53e6, 1.88e6, 2.5e6, 1.85e6],
  [4096, 4.68e6, 1.91e6, 3.49e6, 1.91e6],
  [16384, 1.52e7, 1.94e6, 1.12e7, 1.94e6],
  [32768, 2.75e7, 1.99e6, 2e7, 2.01e6],
] as const;

function ket(): Figure[] {
  return TABLE_15.flatMap(([prefix, stdSplit, stdCombine, sigmaSplit, sigmaCombine]) =>
    (['split', 'combine', 'total'] as const).flatMap((what) => {
      const of = (split: number, combine: number) => ({ split, combine, total: split + combine })[what] / 1e6;
      const one = (model: 'sigma' | 'std', paper: number, factor: number) =>
        made({
          name: `ket ${HEADS[model]}, prefix ${prefix}: ${what}`,
          value: paper * factor,
          limit: paper * factor * 0.9,
          paper,
          group: 'ket',
          at: { heads: HEADS[model], prefix, what },
        });
      return [one('std', of(stdSplit, stdCombine), 12), one('sigma', of(sigmaSplit, sigmaCombine), 11)];
    }),
  );
}

function ceet(): Figure[] {
  const figures: Figure[] = [];
  for (const output of [2048, 4096, 8192, 16384, 32768, 65536])
    for (const prefix of [0, 2048, 4096, 16384, 32768, 65536]) {
      const length = output + prefix;
      const times = {
        cache: [length * 4, length * 4 * 0.64],
        attention: [length * 3, length * 3 * 0.8],
        'augmented Q': [0, output * 0.5],
      };
      const total = (i: 0 | 1) => Object.values(times).reduce((sum, pair) => sum + (pair[i] as number), 0);
      for (const [what, pair] of Object.entries({ ...times, total: [total(0), total(1)] }))
        (['std', 'sigma'] as const).forEach((model, i) => {
          if (pair[i] === 0) return;
          const name = `ceet ${HEADS[model]}, output ${output}, prefix ${prefix}: ${what}`;
          const at = { heads: HEADS[model], output, prefix, what };
          figures.push(made({ name, value: pair[i] as number, group: 'ceet', at }));
        });
    }
  const at = { output: 65536, prefix: 65536 };
  const saving = (what: string, value: number, paper: number) =>
    made({
      name: `ceet saving: ${what}`,
      value,
      unit: '%',
      better: 'more',
      limit: 37.5,
      paper,
      group: 'ceet',
      at: { ...at, what },
    });
  return [...figures, saving('total', 30, 33.36), saving('cache', 36, 36.57), saving('attention', 20, 15.4)];
}

function operators(): Figure[] {
  return [
    'matmul 1 x 2048 -> 6144',
    'matmul 512 x 2048 -> 6144',
    'rms_norm 512 x 2048',
    'a name with <angle> & "quotes"',
  ].map((name, i) =>
    made({
      name: `kernels: ${name}`,
      value: 100 + i * 37,
      unit: i === 1 ? 'GFLOP/s' : 'GB/s',
      better: 'more',
      limit: 260,
      share: (100 + i * 37) / 260,
      limitName: i === 1 ? "oneDNN's rate on the same matrices" : 'read bandwidth',
      bytes: 25165824,
      target: { on: 'share', atLeast: 0.5 },
      met: i > 0,
      group: 'kernels',
    }),
  );
}

function peers(): Figure[] {
  const rows: [who: string, decode: number, prefill: number][] = [
    ['diffqkv', 50, 900],
    ['llama.cpp', 45, 600],
    ['onnxruntime', 30, 950],
  ];
  return rows.flatMap(([who, decode, prefill]) =>
    Object.entries({ decode, prefill }).map(([what, value]) =>
      made({
        name: `${who}: ${what}`,
        value,
        unit: 'tokens/s',
        better: 'more',
        limit: null,
        share: null,
        group: 'peers',
        at: { who, what, threads: 2 },
      }),
    ),
  );
}

export function syntheticResult(file = 'synthetic.json'): Result {
  return {
    file,
    suite: 'synthetic',
    command: 'bench synthetic <not a run>',
    date: '2000-01-01T00:00:00.000Z',
    seconds: 1,
    machine: { cpu: 'synthetic processor', cores: 2, memoryBytes: 2 ** 34, os: 'none', loadAverage: 0 },
    versions: { node: 'v0.0.0', diffqkv: '0.0.0', commit: null, dirty: null, changes: null },
    device: { id: 'cpu', kind: 'cpu', name: 'synthetic processor', details: { threads: '2' } },
    commit: '0123456789abcdef',
    complete: true,
    cells: [{ name: 'ket' }, { name: 'ceet at 128k', skipped: 'a made-up reason' }],
    peers: [
      { name: 'llama.cpp', version: '0.0', status: 'measured' },
      { name: 'FlexAttention', version: null, status: 'missing', reason: 'no PyTorch' },
    ],
    setup: { numLayers: 26 },
    ceilings: { readBandwidth: around(30) },
    figures: [...ket(), ...ceet(), ...operators(), ...peers()],
  };
}
