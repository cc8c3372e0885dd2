// Calls of functions in generated text (lib/tool_calls.ts), in the formats of public models.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  forcedCalls,
  type ToolCallDelta,
  type ToolCallFormat,
  ToolCallParser,
  toolCallFormat,
} from '../../lib/tool_calls';
import { readPythonCalls } from '../../lib/tool_calls_python';
import { resolveTools, type ToolChoice } from '../../lib/tools';
import { randomIntegers } from '../tools/json_schemas';

const TEMPLATES = {
  hermes: '{%- if tools %}<tools></tools>return within <tool_call></tool_call>{% endif %}',
  mistral: "{{ '[AVAILABLE_TOOLS]' }}{{ '[TOOL_CALLS]' }}",
  llama: '{{ "<|python_tag|>" }}"parameters": dictionary of argument name and its value',
  gemma: "{{ '<start_of_turn>' + role }}",
} as const;
type Family = keyof typeof TEMPLATES;

const names = ['weather', 'add', 'größe'];

interface Parsed {
  text: string;
  calls: [string, unknown][];
  deltas: ToolCallDelta[];
}

/** Parses `text` in pieces of `size` UTF-16 code units. */
function parse(family: Family | ToolCallFormat, text: string, size = Number.POSITIVE_INFINITY): Parsed {
  const format = typeof family === 'string' ? toolCallFormat(TEMPLATES[family])! : family;
  const parser = new ToolCallParser(format, names);
  const parts = [];
  for (let at = 0; at < text.length; at += size) parts.push(parser.push(text.slice(at, at + size)));
  parts.push(parser.flush());
  const deltas = parts.flatMap(({ toolCalls }) => toolCalls);
  const calls = parser.calls.map((call): [string, unknown] => {
    // What the deltas of a call give is the call.
    const index = parser.calls.indexOf(call);
    const ofCall = deltas.filter((delta) => delta.index === index);
    if (deltas.length > 0 && parser.calls.length === new Set(deltas.map((delta) => delta.index)).size) {
      const [first] = ofCall;
      expect(first).toMatchObject({ id: call.id, type: 'function', function: { name: call.function.name } });
      expect(ofCall.map((delta) => delta.function.arguments).join('')).toBe(call.function.arguments);
      expect(ofCall.slice(1).every((delta) => delta.id === undefined && delta.function.name === undefined)).toBe(true);
    }
    return [call.function.name, JSON.parse(call.function.arguments)];
  });
  return { text: parts.map((part) => part.text).join(''), calls, deltas };
}

const paris = ['weather', { city: 'Paris' }];
const sum = ['add', { a: 1, b: [2, { c: '}"' }] }];
const PARIS = '{"name": "weather", "arguments": {"city": "Paris"}}';
const SUM = '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}\\""}]}}';

const wellFormed: [Family, string, string, unknown[]][] = [
  ['hermes', `<tool_call>\n${PARIS}\n</tool_call>`, '', [paris]],
  [
    'hermes',
    `Let me see.\n<tool_call>\n${PARIS}\n</tool_call>\n<tool_call>\n${SUM}\n</tool_call>`,
    'Let me see.',
    [paris, sum],
  ],
  ['hermes', `<tool_call>${PARIS}`, '', [paris]], // an end-of-text token instead of the end
  ['hermes', `<tool_call>${PARIS}\n<tool_call>${SUM}</tool_call>`, '', [paris, sum]],
  ['hermes', `<tool_call>{"arguments": {"city": "Paris"}, "name": "weather"}</tool_call> Done.`, ' Done.', [paris]],
  ['hermes', '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>', '', [paris]],
  ['hermes', '<tool_call>{"name": "weather"}</tool_call>', '', [['weather', {}]]],
  [
    'hermes',
    '<tool_call>{"name": "gr\\u00f6\\u00dfe", "arguments": {"日": "🙂"}}</tool_call>',
    '',
    [['größe', { 日: '🙂' }]],
  ],
  ['llama', '{"name": "weather", "parameters": {"city": "Paris"}}', '', [paris]],
  ['llama', `<|python_tag|>${PARIS}; ${SUM}`, '', [paris, sum]],
  ['llama', '\n{"type": "function", "name": "weather", "parameters": {"city": "Paris"}}', '', [paris]],
  ['mistral', `[TOOL_CALLS] [${PARIS}, ${SUM}]`, '', [paris, sum]],
  ['mistral', `Wait.[TOOL_CALLS][${PARIS}]`, 'Wait.', [paris]],
  [
    'mistral',
    '[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]add[CALL_ID]x1y2z3abc[ARGS]{"a": 1, "b": [2, {"c": "}\\""}]}',
    '',
    [paris, sum],
  ],
  ['mistral', '[TOOL_CALLS]weather{"city": "Paris"}', '', [paris]],
  ['gemma', '```tool_code\nprint(weather(city="Paris"))\n```', '', [paris]],
  [
    'gemma',
    "I look.\n```tool_code\ndefault_api.weather(city='Paris')\nadd(a=1, b=[2, {'c': '}\"'},],)\n```\n",
    'I look.',
    [paris, sum],
  ],
  ['gemma', `\`\`\`json\n[${PARIS}, ${SUM}]\n\`\`\``, '', [paris, sum]],
  ['gemma', '{"name": "weather", "parameters": {"city": "Paris"}}', '', [paris]],
];

describe('well-formed calls', () => {
  it.each(wellFormed)('%s: %j', (family, text, content, calls) => {
    for (const size of [Number.POSITIVE_INFINITY, 1, 2, 3, 7]) {
      expect([size, parse(family, text, size)]).toMatchObject([size, { text: content, calls }]);
    }
  });
});

describe('text that has no call', () => {
  it.each<[Family, string]>([
    ['hermes', 'A plain answer, {"name": "weather"} <tool <tool_call'],
    ['hermes', '<tool_call>weather(city)</tool_call>'],
    ['hermes', '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'],
    ['hermes', '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'],
    ['hermes', '<tool_call>{"name": "weather", "arguments": {"city": Paris}}</tool_call>'],
    ['hermes', '<tool_call>{"name": "weather", "arguments": {"city": "Par'],
    ['hermes', '<tool_call>{"name": 5, "arguments": {}}</tool_call>'],
    ['hermes', '<tool_call>{"name": "weather", "arguments": {}, "arguments": {}}</tool_call>'],
    ['hermes', '<tool_call>{"name": "weather", "arguments": {}'],
    ['hermes', '<tool_call>'],
    ['hermes', ' \n'],
    ['llama', 'The call is {"name": "weather", "parameters": {}}'],
    ['llama', '{"answer": 42}'],
    ['llama', '<|python_tag|>brave_search.call(query="x")'],
    ['mistral', '[TOOL_CALLS]'],
    ['mistral', `[TOOL_CALLS][${PARIS.slice(0, 20)}`],
    ['mistral', '[TOOL_CALLS]nothing[ARGS]{}'],
    ['mistral', `[TOOL_CALLS]${'weather '.repeat(100)}`],
    ['gemma', '```tool_code\nimport os\n```'],
    ['gemma', '```python\nweather(city="Paris")\n```'],
    ['gemma', '```tool_code\nweather(city="Paris")\nunknown()\n```'],
    ['gemma', '[1, 2]'],
  ])('%s: %j stays text', (family, text) => {
    for (const size of [Number.POSITIVE_INFINITY, 1, 5]) {
      expect([size, parse(family, text, size)]).toMatchObject([size, { text, calls: [] }]);
    }
  });

  it('a malformed call does not hide the next one', () => {
    for (const size of [Number.POSITIVE_INFINITY, 1]) {
      expect(parse('hermes', `<tool_call>oops <tool_call>${PARIS}</tool_call>`, size)).toMatchObject({
        text: '<tool_call>oops',
        calls: [paris],
      });
    }
  });
});

describe('calls that a grammar demands', () => {
  it.each<[string, string, unknown[]]>([
    [`[${PARIS}, ${SUM}]`, '', [paris, sum]],
    [` [${PARIS}]\n`, '', [paris]],
    [`[${PARIS}, oops]`, ', oops]', [paris]],
    [`[${PARIS}] and [1`, ' and [1', [paris]],
    ['[{"name": "weather", "arguments": "Paris"}]', '[{"name": "weather", "arguments": "Paris"}]', []],
    ['[{"name": "weather", "arguments": {"city": "Par', '[{"name": "weather", "arguments": {"city": "Par', []],
    ['[] \n [', '[] \n [', []],
    ['  \n', '  \n', []],
    ['oops [', 'oops [', []],
    ['', '', []],
  ])('%j', (text, content, calls) => {
    for (const size of [Number.POSITIVE_INFINITY, 1, 2, 3]) {
      expect([size, parse(forcedCalls, text, size)]).toMatchObject([size, { text: content, calls }]);
    }
  });
});

it('the time is linear in the whitespace that is withheld', () => {
  const spaces = ' '.repeat(200_000);
  const startMs = performance.now();
  for (const text of [spaces, `${spaces}a`, `<tool_call>{"name": "weather"${spaces}`, `<tool_call>${spaces}a`]) {
    expect(parse('hermes', text).text === text).toBe(true);
  }
  expect(parse('hermes', `a${spaces}<tool_call>${PARIS}</tool_call>${spaces}`)).toMatchObject({
    text: 'a',
    calls: [paris],
  });
  expect(performance.now() - startMs).toBeLessThan(8000); // 60 s if it is quadratic
});

describe('streaming', () => {
  const stream = (family: Family, text: string) => {
    const parser = new ToolCallParser(toolCallFormat(TEMPLATES[family])!, names);
    return Array.from(text, (char) => ({ char, ...parser.push(char) }));
  };

  it('the name comes first, then the arguments as they are written', () => {
    const steps = stream('hermes', `<tool_call>${PARIS}</tool_call>`);
    const pieces = steps.flatMap(({ toolCalls }) => toolCalls);
    expect(pieces[0]?.function).toEqual({ name: 'weather', arguments: '{' });
    expect(pieces[0]?.id).toMatch(/^call_[0-9a-f]{24}$/);
    expect(pieces.slice(1).map((piece) => piece.function.arguments)).toEqual([...'"city": "Paris"}']);
  });

  it('text is not withheld longer than it may begin a call', () => {
    const steps = stream('hermes', 'a <tool b');
    expect(steps.map(({ text }) => text)).toEqual(['a', '', '', '', '', '', '', ' <tool', ' b']);
  });

  it('ids are those of the model, or fit its template', () => {
    const parser = new ToolCallParser(toolCallFormat(TEMPLATES.mistral)!, names);
    parser.push('[TOOL_CALLS][{"id": "abcdefghi", "name": "add", "arguments": {}}, {"name": "add", "arguments": {}}]');
    expect(parser.calls.map(({ id }) => id)).toEqual(['abcdefghi', expect.stringMatching(/^[a-zA-Z0-9]{9}$/)]);
  });
});

it('any text gives the same however it is split, and loses nothing but calls and whitespace', () => {
  const pieces = [
    ...[
      '<tool_call>',
      '</tool_call>',
      '[TOOL_CALLS]',
      '[ARGS]',
      '[CALL_ID]',
      '<|python_tag|>',
      '```',
      'tool_code',
      'json',
    ],
    ...['{', '}', '[', ']', '"', ':', ',', ';', '(', ')', '=', '\\', ' ', '\n', 'weather', 'add', 'a', '1', 'true'],
    ...['"name"', '"arguments"', '"parameters"', '"weather"', '{}', '{"a": 1}', PARIS, SUM],
  ];
  const below = randomIntegers(4);
  const words = (text: string) => text.replace(/\s+/g, '');
  for (let i = 0; i < 500; i++) {
    const text = Array.from({ length: 1 + below(12) }, () => pieces[below(pieces.length)]).join('');
    for (const family of Object.keys(TEMPLATES) as Family[]) {
      const whole = parse(family, text);
      const split = parse(family, text, 1 + below(3));
      expect([family, text, split.text, split.calls]).toEqual([family, text, whole.text, whole.calls]);
      if (whole.calls.length === 0) expect([family, text, words(whole.text)]).toEqual([family, text, words(text)]);
    }
  }
});

it('a template has one format, or none', () => {
  expect(toolCallFormat('{{ messages }}')).toBeUndefined();
  expect(toolCallFormat('<tool_call>\n<function=name>')).toBeUndefined(); // Qwen3-Coder's XML
  const formats = Object.values(TEMPLATES).map(toolCallFormat);
  expect(new Set(formats).size).toBe(4);
});

it.each([
  ['qwen', '<tool_call>'],
  ['mistral', '[TOOL_CALLS]'],
  ['llama', '<|python_tag|>'],
  ['gemma', '```tool_code'],
  ['phi', undefined],
])('the template %s', (name, begin) => {
  const template = readFileSync(join(__dirname, 'chat_templates', `${name}.jinja`), 'utf8');
  expect(toolCallFormat(template)?.begins[0]).toBe(begin);
});

describe('the choice of tools', () => {
  const nested = (depth: number): object => (depth === 0 ? {} : { items: nested(depth - 1) });
  const tool = (name: string, parameters: object) => ({ type: 'function', function: { name, parameters } });
  const resolve = (tools: object[], toolChoice: ToolChoice | undefined, template: string | null = TEMPLATES.hermes) =>
    resolveTools({ tools, toolChoice, responseFormat: undefined, template });
  const itemsOf = (use: ReturnType<typeof resolve>) => (use.format as { schema: object }).schema;

  it('required allows several calls of all functions, a name one call of it', () => {
    const tools = [tool('a', { $ref: '#/$defs/x' }), { name: 'b' }];
    const call = (name: string, args: object) => ({
      type: 'object',
      properties: { name: { const: name }, arguments: args },
      required: ['name', 'arguments'],
      additionalProperties: false,
    });
    expect(itemsOf(resolve(tools, 'required'))).toEqual({
      type: 'array',
      items: {
        anyOf: [
          call('a', { type: 'object', $ref: '#/items/anyOf/0/properties/arguments/$defs/x' }),
          call('b', { type: 'object' }),
        ],
      },
      minItems: 1,
    });
    expect(itemsOf(resolve(tools, { name: 'b' }))).toEqual({
      ...{ type: 'array', minItems: 1, maxItems: 1 },
      items: { anyOf: [call('b', { type: 'object' })] },
    });
  });

  it('auto needs a function and a template of a known format, and no JSON', () => {
    expect(resolve([tool('a', {})], undefined).parser).toBeDefined();
    expect(resolve([tool('a', {})], 'none')).toEqual({});
    expect(resolve([tool('a', {})], 'auto', null)).toEqual({});
    expect(resolve([tool('a', {})], 'auto', 'no format')).toEqual({});
    expect(resolve([{}], 'auto')).toEqual({});
    const request = { tools: [tool('a', {})], toolChoice: undefined, template: TEMPLATES.hermes };
    expect(resolveTools({ ...request, responseFormat: { type: 'json_object' } })).toEqual({});
    expect(resolveTools({ ...request, responseFormat: { type: 'json_schema', schema: true } })).toEqual({});
    expect(resolveTools({ ...request, responseFormat: { type: 'regex', pattern: 'a' } }).parser).toBeDefined();
  });

  it('the parameters allow objects only, because arguments are an object', () => {
    const argumentsOf = (parameters: unknown) => {
      const { format } = resolve([{ name: 'a', parameters }], 'required');
      const { schema } = format as unknown as {
        schema: { items: { anyOf: { properties: { arguments: unknown } }[] } };
      };
      return schema.items.anyOf[0]?.properties.arguments;
    };
    expect(argumentsOf(null)).toEqual({ type: 'object' });
    expect(argumentsOf({})).toEqual({ type: 'object' });
    expect(argumentsOf({ properties: { a: {} } })).toEqual({ type: 'object', properties: { a: {} } });
    expect(argumentsOf({ type: ['null', 'object'] })).toEqual({ type: 'object' });
    expect(() => argumentsOf({ type: 'array' })).toThrow(
      /^the type of the parameters .* must be 'object', not "array"/,
    );
    expect(() => argumentsOf({ type: ['string'] })).toThrow(/must be 'object', not an array of 1/);
    expect(() => argumentsOf(true)).toThrow(/^the parameters of each of tools must be an object, not true/);
    expect(() => argumentsOf([])).toThrow(/must be an object, not an array of 0/);
  });

  it('references move, and data that looks like references does not', () => {
    const data = { $ref: '#/x' };
    const parameters = {
      type: 'object',
      properties: {
        a: { const: data, default: data, examples: [data], enum: [data, [data]] },
        const: { items: data },
        enum: data,
      },
      $defs: { default: data },
      anyOf: [data],
    };
    const moved = { $ref: '#/items/anyOf/0/properties/arguments/x' };
    expect(itemsOf(resolve([tool('f', parameters)], 'required'))).toMatchObject({
      items: {
        anyOf: [
          {
            properties: {
              arguments: {
                type: 'object',
                properties: { a: parameters.properties.a, const: { items: moved }, enum: moved },
                $defs: { default: moved },
                anyOf: [moved],
              },
            },
          },
        ],
      },
    });
  });

  it('a field that is undefined is none', () => {
    const choice = { name: 'a', other: undefined };
    expect(resolve([tool('a', {})], choice)).toEqual(resolve([tool('a', {})], { name: 'a' }));
  });

  it('parameters have a limited depth', () => {
    expect(resolve([tool('a', nested(100))], 'required').format).toBeDefined();
    expect(() => resolve([tool('a', nested(1000))], 'required')).toThrow(/nested more than 128 levels deep/);
  });
});

describe('Python calls', () => {
  it.each<[string, unknown]>([
    ['f(a=1, b=-2.5e3, c=True, d=None, e="x\\n\\u00e9\\\'")', { a: 1, b: -2500, c: true, d: null, e: "x\né'" }],
    ['f()  # a comment', {}],
    [`f(a=[${'1,'.repeat(150)}])`, { a: Array(150).fill(1) }],
    ['[f(a={"k": [1, [2]]})]', { a: { k: [1, [2]] } }],
  ])('%s', (code, args) => {
    const calls = readPythonCalls(code);
    expect(calls?.map((call) => [call.name, JSON.parse(call.arguments)])).toEqual([['f', args]]);
  });

  it('numbers keep their digits', () => {
    const code = 'f(a=12345678901234567890, b=-0.10, c=1E+30, d=[{"x": 0.1000000000000000055}])';
    expect(readPythonCalls(code)?.[0]?.arguments).toBe(
      '{"a":12345678901234567890,"b":-0.10,"c":1E+30,"d":[{"x":0.1000000000000000055}]}',
    );
  });

  it('of a key that occurs twice, the last value counts', () => {
    expect(readPythonCalls('f(a={"k": 1, "k": 2})')?.[0]?.arguments).toBe('{"a":{"k":2}}');
  });

  it.each([
    '',
    'f(a=007)',
    'f(a=.5)',
    'f(a=1.)',
    'f',
    'f(',
    'f(1)',
    'f(a=b)',
    'f(a=1) + 2',
    'x = f()',
    'f(a="x)',
    'f(a=1 b=2)',
    `f(a=${'['.repeat(200)})`,
    'f(a=1;)',
  ])('%j is other code', (code) => {
    expect(readPythonCalls(code)).toBeNull();
  });
});
