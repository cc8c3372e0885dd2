// Tokens and texts equal those of the reference, the Rust library `tokenizers`: 20 tokenizers, each
// with 10,000 texts (300 if DIFFQKV_TEST_REDUCED is set).

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Tokenizer as Reference } from 'tokenizers';
import { Tokenizer } from '../../lib/index';
import { temporaryDirectories } from '../support/checkpoints';
import { reduced } from '../support/devices';
import { Random } from '../support/numbers';
import { pipelines, randomTexts } from '../support/tokenizer_pipelines';

const TEXTS = reduced ? 300 : 10_000;
const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

function isEqual(got: unknown, want: unknown): boolean {
  if (!Array.isArray(got) || !Array.isArray(want)) return got === want;
  return got.length === want.length && got.every((value, i) => value === want[i]);
}

it('has 20 tokenizers', () => expect(pipelines).toHaveLength(20));

it.each(pipelines)('$name', async ({ name, json }) => {
  const directory = directories.make();
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, 'tokenizer.json'), JSON.stringify(json));
  const tokenizer = (await Tokenizer.fromDirectory(directory)) as Tokenizer;
  const reference = Reference.fromString(JSON.stringify(json));
  const random = new Random(71);
  const texts = randomTexts(TEXTS, 72);
  const encodings = await reference.encodeBatch(texts, { addSpecialTokens: true });
  const expected = encodings.map((encoding) => encoding.getIds());
  const differences: unknown[] = [];
  const check = (what: string, text: unknown, got: unknown, want: unknown) => {
    if (!isEqual(got, want)) differences.push({ what, text, got, want });
  };
  const encode = (text: string, i: number) => (i % 2 === 0 ? tokenizer.encodeAsync(text) : tokenizer.encode(text));
  const tokens = await Promise.all(texts.map(encode));
  const isSpecial = new Set(
    (json.added_tokens as { content: string }[]).map(({ content }) => reference.tokenToId(content)),
  );
  const specials = (ids: number[]) => ids.flatMap((id, i) => (isSpecial.has(id) ? [i] : []));
  tokens.forEach((ids, i) => {
    check('tokens', texts[i], ids, expected[i]);
    check('positions of special tokens', texts[i], specials(ids), specials(expected[i] as number[]));
  });
  // Half of the tokens to decode come from texts, half are random: any bytes, special tokens.
  const lists = expected.map((ids, i) =>
    i % 2 === 0 ? ids : random.tokens(random.integer(1, 12), tokenizer.vocabSize),
  );
  for (const skipSpecialTokens of [true, false]) {
    const decoded = await reference.decodeBatch(
      lists.filter((ids) => ids.length > 0),
      skipSpecialTokens,
    );
    lists
      .filter((ids) => ids.length > 0)
      .forEach((ids, i) => {
        if (!skipSpecialTokens) {
          check('decode', ids, tokenizer.decode(ids, { skipSpecialTokens }), decoded[i]);
          return;
        }
        const stream = tokenizer.stream({ skipSpecialTokens });
        let streamed = '';
        for (let at = 0; at < ids.length; ) {
          const chunk = ids.slice(at, at + random.integer(1, 4));
          streamed += chunk.map((id) => stream.push(id)).join('');
          at += chunk.length;
          // What was emitted is never taken back.
          if (!(decoded[i] as string).startsWith(streamed)) check('prefix', ids, streamed, decoded[i]);
        }
        check('stream', ids, streamed + stream.flush(), decoded[i]);
      });
  }
  const dump = process.env.DIFFQKV_TOKENIZER_DUMP; // for test/tools/compare_tokenizers.py
  if (dump) {
    const decoded = lists.map((ids) => tokenizer.decode(ids));
    const result = { name, json, texts, tokens, lists, decoded };
    writeFileSync(join(dump, `${name.replace(/\W+/g, '_')}.json`), JSON.stringify(result));
  }
  expect(differences.slice(0, 3)).toEqual([]);
  expect(differences).toHaveLength(0);
});
