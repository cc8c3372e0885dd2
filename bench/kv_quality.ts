// `node dist/bench/kv_quality.js TEXT [options]`: the mean loss of the embedded model over a text that it was not trained
// on, for every pair of K and V cache types. Blank lines separate the documents of the text. Each document is read as
// <begin of text> document <end of text>, token by token through Session.decode, and ends with a newline.
import * as fs from 'node:fs';

import { type DeviceId, type DType, Model } from '../lib/index';
import { modelCacheBytes } from './arithmetic';
import { aboutQuality, countTokens, qualityArguments, readDocuments, runQuality, totalLoss } from './loss';

const TYPES = ['bf16', 'f16', 'i8', 'f8e4m3'] as const;
type CacheType = (typeof TYPES)[number];

const USAGE = `Usage: node dist/bench/kv_quality.js TEXT [options]

Options:
  --model DIR        the model (default: the embedded one)
  --device ID        default: cpu
  --dtype TYPE       type of weights and activations (default: the checkpoint's)
  --types K:V,...    the pairs of types (default: all of ${TYPES.join(', ')}); the others are compared with the first
  --documents N      only the first N documents
  --json FILE        write the result as JSON, after each pair`;

interface Pair {
  kType: CacheType;
  vType: CacheType;
}

interface Row extends Pair {
  /** Nats per token. Includes the end of each document, but not its begin. */
  loss: number;
  /** Bytes of K and V in all layers, including scales. */
  bytesPerToken: number;
  seconds: number;
}

function markdown(rows: readonly Row[]): string {
  const base = rows[0] as Row;
  const lines = rows.map(({ kType, vType, loss, bytesPerToken }) => {
    const rise = (loss / base.loss - 1) * 100;
    const share = (bytesPerToken / base.bytesPerToken) * 100;
    return `| ${kType} | ${vType} | ${loss.toFixed(5)} | ${rise < 0 ? '' : '+'}${rise.toFixed(3)} % | ${bytesPerToken} | ${share.toFixed(1)} % |`;
  });
  return [
    '| K | V | loss, nats/token | rise | bytes/token | relative to the first |',
    '|---|---|---|---|---|---|',
    ...lines,
  ].join('\n');
}

function parsePairs(list: string | undefined): Pair[] {
  if (list === undefined) return TYPES.flatMap((kType) => TYPES.map((vType) => ({ kType, vType })));
  return list.split(',').map((pair) => {
    const [kType, vType, ...rest] = pair.split(':') as CacheType[];
    if (rest.length > 0 || !TYPES.includes(kType as CacheType) || !TYPES.includes(vType as CacheType))
      throw new Error(`--types: '${pair}' is not a pair K:V of ${TYPES.join(', ')}`);
    return { kType, vType } as Pair;
  });
}

async function main(): Promise<void> {
  const given = qualityArguments(USAGE, ['dtype', 'types']);
  if (given === null) return;
  const { values, file, limit } = given;
  const pairs = parsePairs(values.types);
  const model = await Model.load(values.model, {
    device: values.device as DeviceId,
    dtype: values.dtype as DType | undefined,
  });
  const documents = await readDocuments(model, file, limit);
  const numTokens = countTokens(documents);
  const about = aboutQuality('kv_quality', model, file, documents);
  process.stderr.write(`${documents.length} documents, ${numTokens} tokens to predict, on ${model.device.info.name}\n`);
  const rows: Row[] = [];
  try {
    for (const pair of pairs) {
      const start = performance.now();
      const loss = (await totalLoss(model, pair, documents, `K ${pair.kType}, V ${pair.vType}`)) / numTokens;
      const seconds = (performance.now() - start) / 1000;
      rows.push({
        ...pair,
        loss,
        bytesPerToken: model.config.numLayers * modelCacheBytes(model.config, pair.kType, pair.vType),
        seconds,
      });
      const minutesLeft = (seconds * (pairs.length - rows.length)) / 60;
      if (process.stderr.isTTY) process.stderr.write('\r');
      process.stderr.write(
        `K ${pair.kType}, V ${pair.vType}: ${loss.toFixed(5)}, ${seconds.toFixed(0)} s; ${rows.length} of ${pairs.length}, some ${minutesLeft.toFixed(0)} min to go\n`,
      );
      if (values.json) fs.writeFileSync(values.json, `${JSON.stringify({ ...about, rows }, null, 2)}\n`);
    }
  } finally {
    model.dispose();
  }
  process.stdout.write(`${markdown(rows)}\n`);
}

runQuality('kv_quality', main);
