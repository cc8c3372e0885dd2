// npm run test:structured [-- --schemas N] [--seed N] [--device ID] [--tokens N]: draws one text for
// each of N random JSON schemas from the embedded model, at temperature 1.5 and in batches, and
// checks each with ajv. A text that reaches maxTokens, such as a number whose digits do not end, is
// drawn again with another seed. Then measures the CPU time of the masks of a vocabulary of 128,256
// tokens, with the way to the thread and back: `--tokens` for each grammar.

import { createRequire } from 'node:module';
import { parseArgs } from 'node:util';

const require = createRequire(import.meta.url);
const Ajv = require('ajv/dist/2020').default;
const { Model, defaultModelDirectory } = require('../../dist/lib/index.js');
const { GrammarCompiler } = require('../../dist/lib/grammar/compiler.js');
const { grammarSource } = require('../../dist/lib/grammar/format.js');
const { jsonSchemas, randomIntegers } = require('./json_schemas.js');

const { values } = parseArgs({
  options: {
    schemas: { type: 'string', default: '200' },
    seed: { type: 'string', default: '1' },
    device: { type: 'string', default: 'cpu' },
    tokens: { type: 'string', default: '300' },
  },
});
const DRAWS = 50;
const VOCABULARY = 128_256;

const model = await Model.load(defaultModelDirectory, { device: values.device });
const tokenizer = model.tokenizer;
const texts = Array.from({ length: tokenizer.vocabSize }, (_, token) => tokenizer.decode([token]));

async function checkSchemas() {
  const ajv = new Ajv({ strict: false, validateFormats: false });
  const counts = { valid: 0, invalid: 0, errors: 0, 'drawn again': 0, unfinished: 0, tokens: 0 };
  const started = performance.now();
  const check = async ({ kind, schema }, i) => {
    const responseFormat = { type: 'json_schema', schema };
    for (let draw = 0; draw < DRAWS; draw++) {
      const seed = i * DRAWS + draw;
      const options = { responseFormat, temperature: 1.5, seed, maxTokens: 200 };
      const { text, finishReason, tokens } = await model.generate('# tar\n', options).result;
      counts.tokens += tokens.length;
      if (finishReason !== 'stop') {
        counts['drawn again']++;
        continue;
      }
      if (ajv.validate(schema, JSON.parse(text))) counts.valid++;
      else {
        counts.invalid++;
        console.log(`INVALID (${kind}): ${JSON.stringify(schema)}\n  ${text}\n  ${ajv.errorsText()}`);
      }
      return;
    }
    counts.unfinished++;
    console.log(`UNFINISHED in ${DRAWS} draws (${kind}): ${JSON.stringify(schema)}`);
  };
  const schemas = jsonSchemas(Number(values.schemas), Number(values.seed));
  await Promise.all(
    schemas.map((example, i) =>
      check(example, i).catch((error) => {
        counts.errors++;
        console.log(`${error.code} (${example.kind}): ${error.message}\n  ${JSON.stringify(example.schema)}`);
      }),
    ),
  );
  const ms = performance.now() - started;
  console.log(`${schemas.length} schemas in ${(ms / 1000).toFixed(1)} s:`, counts);
  return counts.valid === schemas.length;
}

/** The tokens of the embedded model and pairs of them, all different. */
function largeVocabulary() {
  const below = randomIntegers(1);
  const words = new Set(texts.filter((text) => text !== '' && !text.includes('\ufffd')));
  const single = [...words];
  while (words.size < VOCABULARY) words.add(single[below(single.length)] + single[below(single.length)]);
  const bytes = [...words].map((word) => Buffer.from(word));
  const ranges = new Uint32Array(2 * bytes.length);
  bytes.reduce((start, { length }, i) => {
    ranges.set([start, start + length], 2 * i);
    return start + length;
  }, 0);
  return { text: Buffer.concat(bytes), ranges, specialTexts: new Set(), decoder: { type: 'Fuse' } };
}

async function timeMasks() {
  const compiler = new GrammarCompiler(largeVocabulary());
  const options = { vocabSize: VOCABULARY, endTokens: [] };
  const below = randomIntegers(2);
  // Of all threads. Nothing else runs.
  const cpuMs = () => process.cpuUsage().user / 1000 + process.cpuUsage().system / 1000;
  const since = (start) => cpuMs() - start;
  const person = {
    type: 'object',
    properties: {
      name: { type: 'string', maxLength: 40 },
      age: { type: 'integer', minimum: 0, maximum: 150 },
      mail: { type: 'string', pattern: '^[a-z]+@[a-z]+\\.com$' },
      tags: { type: 'array', items: { enum: ['red', 'green', 'blue'] }, maxItems: 5 },
      friend: { $ref: '#' },
    },
    required: ['name', 'age', 'mail', 'tags'],
    additionalProperties: false,
  };
  const formats = {
    json_object: { type: 'json_object' },
    'json_schema, an object': { type: 'json_schema', schema: person },
    'json_schema, a string': { type: 'json_schema', schema: { type: 'string' } },
    regex: { type: 'regex', pattern: '([a-z]{3,10}(-[0-9]{1,4}){2,5} )+' },
    grammar: { type: 'grammar', grammar: 'start: "(" start ")" | start "+" start | /[0-9]+/' },
  };
  const start = cpuMs();
  (await compiler.compile(grammarSource({ type: 'regex', pattern: 'a' }), options)).dispose();
  console.log(`${VOCABULARY} tokens: the thread is ready after ${since(start).toFixed(0)} ms of CPU time`);
  console.log('ms of CPU time to compile; for each token the median, mean, 99 %');
  let worstMean = 0;
  for (const [name, format] of Object.entries(formats)) {
    const compileStart = cpuMs();
    let constraint = await compiler.compile(grammarSource(format), options);
    const compileMs = since(compileStart);
    const times = [];
    while (times.length < Number(values.tokens)) {
      if (constraint.isFinished || constraint.allowed.every((word) => word === 0)) {
        constraint.dispose();
        constraint = await compiler.compile(grammarSource(format), options);
      }
      // A random allowed token, from a random word of 32 tokens.
      let word = below(constraint.allowed.length);
      while (constraint.allowed[word] === 0) word = (word + 1) % constraint.allowed.length;
      let bit = below(32);
      while (!((constraint.allowed[word] >>> bit) & 1)) bit = (bit + 1) % 32;
      const from = cpuMs();
      await constraint.accept(32 * word + bit);
      times.push(since(from));
    }
    constraint.dispose();
    times.sort((a, b) => a - b);
    const mean = times.reduce((sum, ms) => sum + ms, 0) / times.length;
    worstMean = Math.max(worstMean, mean);
    const figures = [compileMs, times[times.length >> 1], mean, times[Math.floor(times.length * 0.99)]];
    console.log(`  ${name.padEnd(24)} ${figures.map((ms) => ms.toFixed(2).padStart(8)).join('')}`);
  }
  compiler.close();
  return worstMean < 1;
}

const isValid = await checkSchemas();
const isFast = await timeMasks();
model.dispose();
if (!isFast) console.log('the mask of a token takes 1 ms or more on average');
process.exitCode = isValid && isFast ? 0 : 1;
