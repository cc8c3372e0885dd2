// `node dist/bench/weight_quality.js TEXT [options]`: the mean loss of the embedded model over a text that it was not
// trained on (as kv_quality.ts), with its matrices as they are and quantized in several ways.
import * as fs from 'node:fs';

import { type DeviceId, Model, type ModelOptions } from '../lib/index';
import { aboutQuality, countTokens, qualityArguments, readDocuments, runQuality, totalLoss } from './loss';

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
  const given = qualityArguments(USAGE);
  if (given === null) return;
  const { values, file, limit } = given;
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
      const about = aboutQuality('weight_quality', model, file, documents);
      fs.writeFileSync(values.json, `${JSON.stringify({ ...about, rows }, null, 2)}\n`);
    } finally {
      model.dispose();
    }
  }
  process.stdout.write(`${markdown(rows)}\n`);
}

runQuality('weight_quality', main);
