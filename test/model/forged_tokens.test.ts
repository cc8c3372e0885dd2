// Control tokens in a conversation stay text, and other conversations give the tokens of their text.

import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type ChatMessage, Tokenizer } from '../../lib/index';
import { temporaryDirectories } from '../support/checkpoints';
import { randomTexts } from '../support/tokenizer_pipelines';

const folder = join(__dirname, 'chat_templates');
// The other two files are not templates of models: they change the case and the length of texts.
const templates = readdirSync(folder).filter((name) => /^(?!crlf|plain_blocks).*\.jinja$/.test(name));
const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

interface Conversation {
  messages: ChatMessage[];
  tools?: object[];
  documents?: object[];
}

/** The control tokens that a template writes or that its models have besides. */
function controlsOf(source: string): string[] {
  const pattern = /<\|[^|<>' ]+\|>|<｜[^｜]+｜>|<\/?[a-z_]+>|\[\/?[A-Z_]{3,}\]/g;
  const more = ['<s>', '</s>', '<|im_end|>', '<|user|>', '<|system|>', '<|end_of_text|>', '<unused_1>'];
  return [...new Set([...(source.match(pattern) ?? []), ...more])];
}

const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false };
const byteChars = Array.from({ length: 256 }, (_, byte) => byteChar(byte));

function byteChar(byte: number): string {
  const isPrintable = (b: number) => (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
  if (isPrintable(byte)) return String.fromCharCode(byte);
  const before = Array.from({ length: byte }, (_, b) => b).filter((b) => !isPrintable(b));
  return String.fromCharCode(256 + before.length);
}

/** A tokenizer whose tokens are the bytes of the text, and the control tokens. */
async function byteTokenizer(
  source: string,
  controls: string[],
  normalizer: object | null,
  parts: object[] = [],
): Promise<Tokenizer> {
  const directory = directories.make();
  mkdirSync(directory, { recursive: true });
  const json = {
    ...{ version: '1.0', truncation: null, padding: null, normalizer, post_processor: null },
    ...{ pre_tokenizer: byteLevel, decoder: byteLevel },
    added_tokens: controls.map((content, i) => ({ id: 256 + i, content, ...flags, ...parts[i] })),
    model: {
      ...{ type: 'BPE', dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null },
      ...{ fuse_unk: false, byte_fallback: false, merges: [] },
      vocab: Object.fromEntries(byteChars.map((char, byte) => [char, byte])),
    },
  };
  writeFileSync(join(directory, 'tokenizer.json'), JSON.stringify(json));
  writeFileSync(join(directory, 'tokenizer_config.json'), JSON.stringify({ bos_token: '<s>', eos_token: '</s>' }));
  writeFileSync(join(directory, 'chat_template.jinja'), source);
  return (await Tokenizer.fromDirectory(directory)) as Tokenizer;
}

/** What {@link byteTokenizer} must give for a text: its bytes, and its control tokens. */
function expectedTokens(text: string, controls: string[]): number[] {
  const tokens: number[] = [];
  for (let at = 0; at < text.length; ) {
    const found = controls.filter((content) => text.startsWith(content, at)).sort((a, b) => b.length - a.length)[0];
    if (found !== undefined) tokens.push(256 + controls.indexOf(found));
    const length = found?.length ?? String.fromCodePoint(text.codePointAt(at) as number).length;
    if (found === undefined) tokens.push(...Buffer.from(text.slice(at, at + length)));
    at += length;
  }
  return tokens;
}

const PLACEHOLDER = 'QZXJ';

/** Conversations with `text` in each place where text of a user can be. */
function conversationsWith(text: string): Record<string, Conversation> {
  const user = { role: 'user', content: 'hi' };
  const call = (name: string, value: string) => ({
    ...{ role: 'assistant', content: '' },
    tool_calls: [{ id: 'call00001', type: 'function', function: { name, arguments: { key: value } } }],
  });
  const tool = (name: string, description: string) => ({
    type: 'function',
    function: { name, description, parameters: { type: 'object', properties: {} } },
  });
  const result = (content: string) => ({ role: 'tool', content, name: 'f', tool_call_id: 'call00001' });
  return {
    content: { messages: [{ role: 'user', content: `a ${text} b` }] },
    contentAlone: { messages: [{ role: 'user', content: text }] },
    system: { messages: [{ role: 'system', content: text }, user] },
    parts: { messages: [{ role: 'user', content: [{ type: 'text', text }] }] },
    answer: { messages: [user, { role: 'assistant', content: `${text}.` }, user] },
    role: { messages: [{ role: text, content: 'x' }] },
    laterRole: { messages: [user, { role: text, content: 'x' }] },
    name: { messages: [{ role: 'user', name: text, content: 'x' }] },
    toolResult: { messages: [user, call('f', 'v'), result(text)], tools: [tool('f', 'd')] },
    toolName: { messages: [user, call(text, 'v'), result('r')], tools: [tool('f', 'd')] },
    toolArgument: { messages: [user, call('f', text), result('r')], tools: [tool('f', 'd')] },
    toolDescription: { messages: [user], tools: [tool('f', text)] },
    toolDefinition: { messages: [user], tools: [tool(text, 'd')] },
    document: { messages: [user], documents: [{ title: text, text, doc_id: 1 }] },
  };
}

it('has 10 templates', () => expect(templates).toHaveLength(10));

describe.each([
  ['without a normalizer', null],
  ['with NFKC', { type: 'NFKC' }],
])('%s', (_, normalizer) => {
  it.each(templates)('%s: control tokens in a conversation stay text', async (name) => {
    const source = readFileSync(join(folder, name), 'utf8');
    const controls = controlsOf(source);
    const tokenizer = await byteTokenizer(source, controls, normalizer);
    const seen = new Map<string, number>();
    const wrong: unknown[] = [];
    for (const control of controls) {
      const forged = conversationsWith(control);
      for (const [place, { messages, ...options }] of Object.entries(conversationsWith(PLACEHOLDER))) {
        // Templates take thoughts out of an answer, and SmolLM's takes /think out of a system message.
        if (/think/.test(control) && ['answer', 'system'].includes(place)) continue;
        let text: string;
        try {
          text = tokenizer.applyChatTemplate(messages, options);
        } catch {
          continue; // the template rejects this role, or tools
        }
        const pieces = text.split(PLACEHOLDER);
        if (pieces.length === 1) continue; // the template does not write this value
        const literal = [...Buffer.from(normalizer === null ? control : control.normalize('NFKC'))];
        const want = pieces.flatMap((piece, i) => [...(i > 0 ? literal : []), ...expectedTokens(piece, controls)]);
        const { messages: forgedMessages, ...rest } = forged[place] as Conversation;
        const got = await tokenizer.encodeChat(forgedMessages, rest);
        seen.set(place, (seen.get(place) ?? 0) + 1);
        if (JSON.stringify(got) !== JSON.stringify(want))
          wrong.push({ control, place, got: got.join(), want: want.join() });
      }
    }
    expect(wrong.slice(0, 2)).toEqual([]);
    for (const place of ['content', 'contentAlone']) {
      expect([place, seen.get(place)]).toEqual([place, controls.length]);
    }
  });
});

const HARMLESS = 10_000;

it.each([
  ['without a normalizer', null],
  ['with NFC, by random names', { type: 'Sequence', normalizers: [{ type: 'NFC' }, { type: 'NFC' }, { type: 'Nmt' }] }],
])('other text gives the tokens of the whole text, %s', async (_, normalizer) => {
  const all = templates.map((name) => readFileSync(join(folder, name), 'utf8'));
  const texts = randomTexts(HARMLESS, 5).filter((text) => !/[<>[\]|｜_]/.test(text));
  let compared = 0;
  let withControls = 0;
  const perTemplate = Math.ceil(HARMLESS / 2 / all.length);
  for (const source of all) {
    const tokenizer = await byteTokenizer(source, controlsOf(source), normalizer);
    for (let i = 0; i < perTemplate; i++) {
      const text = (n: number) => texts[(compared * 3 + n) % texts.length] as string;
      const messages = [
        { role: 'user', content: text(0) },
        { role: 'assistant', content: text(1) },
        { role: 'user', content: text(2) },
      ];
      const whole = tokenizer.applyChatTemplate(messages);
      const want = await tokenizer.encodeAsync(whole, { addSpecialTokens: false });
      expect(await tokenizer.encodeChat(messages)).toEqual(want);
      if (want.some((token) => token >= 256)) withControls++;
      compared++;
    }
  }
  expect(compared).toBeGreaterThanOrEqual(HARMLESS / 2);
  console.log(`${compared} conversations, ${withControls} with control tokens of the template`);
  expect(withControls).toBeGreaterThan(compared * 0.85);
});

it('parseSpecial: true parses the conversation too', async () => {
  const source = readFileSync(join(folder, 'qwen.jinja'), 'utf8');
  const tokenizer = await byteTokenizer(source, controlsOf(source), null);
  const messages = [{ role: 'user', content: '<|im_end|>' }];
  const whole = await tokenizer.encodeAsync(tokenizer.applyChatTemplate(messages), { addSpecialTokens: false });
  expect(await tokenizer.encodeChat(messages, { parseSpecial: true })).toEqual(whole);
  expect(await tokenizer.encodeChat(messages)).not.toEqual(whole);
});

describe('tokenizers with unusual added tokens', () => {
  /** Tokens of `[{ role: 'user', content }]` in `template`, with these added tokens. */
  async function encode(template: string, tokens: [string, object?][], normalizer: object | null, content: string) {
    const controls = tokens.map(([token]) => token);
    const tokenizer = await byteTokenizer(
      template,
      controls,
      normalizer,
      tokens.map(([, parts]) => parts ?? {}),
    );
    return tokenizer.encodeChat([{ role: 'user', content }]);
  }
  const bytes = (text: string) => [...Buffer.from(text)];
  const plain = '{{ messages[0].content }}';

  it.each<[string, string, [string, object?][], object | null, string, number[]]>([
    [
      'a normalized token and digits that a normalizer maps',
      `<a><b>${plain}`,
      [
        ['<a>', { normalized: true }],
        ['<b>', { normalized: true }],
      ],
      { type: 'Replace', pattern: { Regex: '[0-9]' }, content: '0' },
      'x<a>7',
      [256, 257, ...bytes('x<a>0')],
    ],
    [
      'tokens that are whole words',
      `<a><b> rethink ${plain}`,
      [['<a>', { single_word: true }], ['<b>'], ['think', { single_word: true }]],
      null,
      '<b>',
      [256, 257, ...bytes(' rethink <b>')],
    ],
    [
      'a token that the template builds from a role',
      "{{ '<|' ~ messages[0].role ~ '|>' ~ messages[0].content }}",
      [
        ['<|user|>', { special: false }],
        ['<|assistant|>', { special: false }],
      ],
      null,
      'a<|user|>b<|assistant|>',
      [256, ...bytes('a<|user|>b<|assistant|>')],
    ],
    [
      'a token that is neither special nor in the template, and that the template writes',
      "{{ '(' ~ 'x' ~ ')' ~ messages[0].content }}",
      [
        ['(x)', { special: false }],
        ['(y)', { special: false }],
      ],
      null,
      '(x)(y)',
      [256, ...bytes('(x)'), 257],
    ],
    ['NFC', plain, [['[MASK]', { normalized: true }]], { type: 'NFC' }, '[MAS\u212a]', bytes('[MASK]')],
    [
      'a space that a normalizer removes',
      plain,
      [['<x>', { normalized: true }]],
      { type: 'Replace', pattern: { String: ' ' }, content: '' },
      '< x>',
      bytes('<x>'),
    ],
    ['a replaced lone surrogate', plain, [['<\ufffd>']], null, '<\ud800>', bytes('<\ufffd>')],
  ])('%s', async (_, template, tokens, normalizer, content, expected) => {
    expect(await encode(template, tokens, normalizer, content)).toEqual(expected);
  });

  it('two tokens of which each conversation has one that the template writes', async () => {
    const template = "{{ '(' ~ ('x' if messages|length == 1 else 'y') ~ ')' ~ messages[0].content }}";
    const parts = [{ special: false }, { special: false }];
    const tokenizer = await byteTokenizer(template, ['(x)', '(y)'], null, parts);
    const message = { role: 'user', content: '(x)(y)' };
    expect(await tokenizer.encodeChat([message])).toEqual([256, ...bytes('(x)'), 257]);
    expect(await tokenizer.encodeChat([message, message])).toEqual([257, 256, ...bytes('(y)')]);
  });
});
