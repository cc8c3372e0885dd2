// The fuzz targets of the tokenizer's files. Any input must lead to a consistent tokenizer or a
// DiffqkvError with the right code. test/tools/fuzz.mjs runs them on dist/, and test/fuzz/fuzz.test.ts runs
// the kept inputs on lib/.
//
// An input is text in parts with NUL between them: tokenizer.json, tokenizer_config.json,
// chat_template.jinja and a text to encode. An empty part is omitted.
'use strict';

const { rmSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');

// For the target `chat_template`, whose inputs have only the last two parts.
const tokenizerJson = JSON.stringify({
  added_tokens: [
    { id: 0, content: '<s>', special: true },
    { id: 1, content: '</s>', special: true },
  ],
  decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
  model: { type: 'BPE', vocab: { '<s>': 0, '</s>': 1, a: 2, b: 3, ab: 4 }, merges: ['a b'] },
});
const configJson = JSON.stringify({ bos_token: '<s>', eos_token: '</s>' });

async function open(Tokenizer, directory, parts) {
  ['tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja'].forEach((name, i) => {
    const file = join(directory, name);
    if (parts[i]) writeFileSync(file, parts[i]);
    else rmSync(file, { force: true });
  });
  return Tokenizer.fromDirectory(directory);
}

/**
 * Runs `work` and returns its result. Returns undefined on an error with one of `codes`, and fails
 * on any other.
 */
async function only(codes, work) {
  try {
    return await work();
  } catch (error) {
    if (error?.constructor?.name !== 'DiffqkvError' || !codes.includes(error.code)) throw error;
    if (error.message.length > 3000) throw new Error(`a message of ${error.message.length} characters`);
    return undefined;
  }
}

function must(good, what) {
  if (!good) throw new Error(`FOUND: ${what}`);
}

const broken = ['ERR_INVALID_CHECKPOINT', 'ERR_UNSUPPORTED_MODEL'];

async function use(tokenizer, text) {
  const tokens = (await only(broken, () => tokenizer.encodeAsync(text))) ?? [];
  must(
    tokens.every((token) => Number.isInteger(token) && token >= 0 && token < tokenizer.vocabSize),
    'a token outside of the vocabulary',
  );
  for (const id of [tokenizer.bosTokenId, tokenizer.eosTokenId])
    must(id === null || (Number.isInteger(id) && id >= 0 && id < tokenizer.vocabSize), 'a special token outside');
  const others = Array.from(text.slice(0, 64), (char, i) => (char.codePointAt(0) * (i + 1)) % (tokenizer.vocabSize + 2));
  for (const ids of [tokens, others]) {
    for (const skipSpecialTokens of [true, false]) {
      await only(broken, () => {
        const stream = tokenizer.stream({ skipSpecialTokens });
        const streamed = ids.map((id) => stream.push(id)).join('') + stream.flush();
        must(streamed === tokenizer.decode(ids, { skipSpecialTokens }), 'the stream differs from decode');
      });
    }
  }
  const messages = [
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: text },
  ];
  const codes = [...broken, 'ERR_INVALID_ARGUMENT'];
  const chat = await only(codes, () => tokenizer.applyChatTemplate(messages));
  must(chat === undefined || typeof chat === 'string', 'a chat that is not a string');
}

module.exports = {
  async tokenizer(Tokenizer, directory, input) {
    const parts = input.split('\0');
    const tokenizer = await only(broken, () => open(Tokenizer, directory, parts));
    if (tokenizer) await use(tokenizer, parts[3] ?? '');
  },
  async chat_template(Tokenizer, directory, input) {
    const [template, text = ''] = input.split('\0');
    const tokenizer = await open(Tokenizer, directory, [tokenizerJson, configJson, template]);
    await use(tokenizer, text);
  },
};
