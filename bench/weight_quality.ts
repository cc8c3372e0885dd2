// `node dist/bench/weight_quality.js TEXT [options]`: the mean loss of the embedded model over a text that it was not
// trained on (as kv_quality.ts), with its matrices as they are and quantized in several ways.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { parseArgs } from 'node:util';

import { type DeviceId, defaultModelDirectory, Model, type ModelOptions } from '../lib/index';
import { countTokens, readDocuments, totalLoss } from './loss';
import { describeMachine, describeVersions } from './machine';

const USAGE = `Usage: node dist/bench/weight_quality.js TEXT [options]

Options:
  --model DIR        the model (default: the embedded one)
  --device ID        default: cpu
  --documents N      only the first N documents
  --json FILE        write the result as JSON, after each row`;

const VARIANTS: Pick<ModelOptions, 'weightType' | 'weightGroupSize' | 'quantizeLmHead'>[] = [
  {},
  ...(['i8', 'i4'] as const).flatMap((weightType) =>
    [32, 64, 128].map((weightGroupSize) => ({ weightType, weightGroupSize })),
  ),
  { weightType: 'i4', weightGroupSize: 32, quantizeLmHead: false },
];

interface Row {
  weightType: string;
  groupSize: number | null;
  lmHead: boolean;
  /** Nats per token. Includes the end of each document, but not its begin. */
  loss: number;
  /** Of all weights in device memory. */
  weightBytes: number;
}

function markdown(rows: readonly Row[]): string {
  const base = rows[0] as Row;
  const lines = rows.map(({ weightType, groupSize, lmHead, loss, weightBytes }) => {
    const rise = (loss / base.loss - 1) * 100;
    const output = groupSize === null ? '' : lmHead ? 'quantized' : 'as it is';
    return `| ${weightType} | ${groupSize ?? ''} | ${output} | ${loss.toFixed(5)} | ${rise < 0 ? '' : '+'}${rise.toFixed(3)} % | ${weightBytes} |`;
  });
  return [
    '| weights | group | output matrix | loss, nats/token | rise | bytes of weights |',
    '|---|---|---|---|---|---|',
    ...lines,
  ].join('\n');
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    options: {
      model: { type: 'string', default: defaultModelDirectory },
      device: { type: 'string', default: 'cpu' },
      documents: { type: 'string', default: 'Infinity' },
      json: { type: 'string' },
      help: { type: 'boolean', short: 'h', default: false },
    },
    allowPositionals: true,
  });
  const [file, ...rest] = positionals;
  if (values.help || file === undefined || rest.length > 0) {
    (values.help ? process.stdout : process.stderr).write(`${USAGE}\n`);
    process.exitCode = values.help ? 0 : 1;
    return;
  }
  const limit = Number(values.documents);
  if (!(limit >= 1)) throw new Error(`--documents must be at least 1, not '${values.documents}'`);
  const rows: Row[] = [];
  for (const options of VARIANTS) {
    const model = await Model.load(values.model, { device: values.device as DeviceId, ...options });
    try {
      const documents = await readDocuments(model, file, limit);
      const numTokens = countTokens(documents);
      const name = `${model.weightType} ${options.weightGroupSize ?? ''}`;
      const loss = (await totalLoss(model, {}, documents, name)) / numTokens;
      rows.push({
        weightType: model.weightType,
        groupSize: options.weightGroupSize ?? null,
        lmHead: options.quantizeLmHead ?? true,
        loss,
        weightBytes: model.weightBytes,
      });
      process.stderr.write(`${name}: ${loss.toFixed(5)} over ${numTokens} tokens\n`);
      if (values.json === undefined) continue;
      const about = {
        command: ['weight_quality', ...process.argv.slice(2)].join(' '),
        date: new Date().toISOString(),
        machine: describeMachine(),
        versions: describeVersions(),
        setup: {
          text: path.basename(file),
          documents: documents.length,
          tokens: numTokens,
          device: model.device.info,
          dtype: model.dtype,
        },
      };
      fs.writeFileSync(values.json, `${JSON.stringify({ ...about, rows }, null, 2)}\n`);
    } finally {
      model.dispose();
    }
  }
  process.stdout.write(`${markdown(rows)}\n`);
}

main().catch((error: Error & { code?: string }) => {
  process.stderr.write(`weight_quality: ${error.message}${error.code === undefined ? '' : ` (${error.code})`}\n`);
  process.exitCode = 1;
});
