// Chat templates against Python's jinja2: see test/fixtures/chat_templates/reference.py.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { type ChatMessage, ChatTemplate, type ChatTemplateOptions } from '../../lib/chat';
import { DiffqkvError } from '../../lib/errors';

const folder = join(__dirname, '..', 'fixtures', 'chat_templates');

interface Conversation {
  messages: ChatMessage[];
  tools?: object[];
  documents?: object[];
  add_generation_prompt?: boolean;
  [variable: string]: unknown;
}
type Result = { text: string } | { raised: string } | { error: string };
interface Expected {
  name: string;
  source: string;
  results: Record<string, Result>;
}

const conversations: Record<string, Conversation> = JSON.parse(
  readFileSync(join(folder, 'conversations.json'), 'utf8'),
);
const expected: Expected[] = JSON.parse(gunzipSync(readFileSync(join(folder, 'expected.json.gz'))).toString());
const now = new Date(2024, 6, 6, 9, 5, 3); // as in reference.py

function optionsOf({ messages: _, tools, documents, add_generation_prompt, ...rest }: Conversation) {
  const options: ChatTemplateOptions = { tools, documents, templateOptions: rest };
  if (add_generation_prompt !== undefined) options.addGenerationPrompt = add_generation_prompt;
  return options;
}

function compile(source: string): ChatTemplate {
  return new ChatTemplate('a model', { default: source, toolUse: undefined }, { bos_token: '<s>', eos_token: '</s>' });
}

/** The text, or the code and message of the error. */
function outcome(template: ChatTemplate, conversation: Conversation): string | DiffqkvError {
  try {
    const parts = template.renderParts(conversation.messages, optionsOf(conversation), now);
    return parts.map((part) => part.text).join('');
  } catch (error) {
    if (error instanceof DiffqkvError) return error;
    throw error;
  }
}

// Constructs that are rejected by name: the line of constructs.txt, and the reason.
const REJECTED = new Map<string, RegExp>([["{{ 'a\\tb'.expandtabs(4) }}", /uses the method expandtabs of str/]]);

const counts = { equal: 0, raised: 0, failed: 0, rejected: 0 };

describe('chat templates render as in Python', () => {
  it.each(expected.map((entry, i) => ({ title: `${i}: ${entry.name.slice(0, 60)}`, ...entry })))(
    '$title',
    ({ name, source, results }) => {
      const template = compile(source);
      for (const [key, result] of Object.entries(results)) {
        const got = outcome(template, conversations[key] as Conversation);
        const rejected = REJECTED.get(name);
        if (rejected) {
          expect(got).toMatchObject({ code: 'ERR_UNSUPPORTED_MODEL', message: expect.stringMatching(rejected) });
          counts.rejected++;
        } else if ('text' in result) {
          expect([key, got]).toEqual([key, result.text]);
          counts.equal++;
        } else if ('raised' in result) {
          expect(got).toMatchObject({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining(result.raised) });
          counts.raised++;
        } else {
          expect([key, got]).toEqual([key, expect.any(DiffqkvError)]);
          const isSyntax = /^(TemplateSyntaxError|SyntaxError|TemplateAssertionError)/.test(result.error);
          const codes = isSyntax ? ['ERR_INVALID_CHECKPOINT', 'ERR_UNSUPPORTED_MODEL'] : ['ERR_INVALID_ARGUMENT'];
          if (/No (filter|test) named/.test(result.error)) codes.push('ERR_UNSUPPORTED_MODEL');
          expect(codes).toContain((got as DiffqkvError).code);
          counts.failed++;
        }
      }
    },
  );

  afterAll(() => console.log('chat templates against Python:', counts));
});

/** Renders for one short message. */
function render(
  source: string,
  options?: ChatTemplateOptions,
  messages: ChatMessage[] = [{ role: 'user', content: 'hi' }],
) {
  return compile(source).render(messages, options);
}

function errorOf(work: () => unknown): DiffqkvError {
  try {
    work();
  } catch (error) {
    if (error instanceof DiffqkvError) return error;
    throw error;
  }
  throw new Error('no error');
}

describe('the variables of a chat template', () => {
  it('are None if tools and documents are absent', () => {
    expect(render('{{ tools }} {{ documents }} {{ tools is defined }}')).toBe('None None True');
    const tools = [{ name: 'f', n: 1, x: 0.5, none: null, skipped: undefined }];
    expect(render('{{ tools }}{{ documents }}', { tools, documents: [] })).toBe(
      "[{'name': 'f', 'n': 1, 'x': 0.5, 'none': None}][]",
    );
  });

  it('include templateOptions, which have precedence over special tokens', () => {
    const source = '{{ bos_token }}{{ eos_token }}{{ enable_thinking }}{{ other is defined }}';
    expect(render(source)).toBe('<s></s>False');
    const templateOptions = { bos_token: '', enable_thinking: false, other: undefined };
    expect(render(source, { templateOptions })).toBe('</s>FalseFalse');
  });

  it('reject what JSON does not have', () => {
    const circle: Record<string, unknown> = {};
    circle.inner = [circle, circle];
    let deep: unknown[] = [];
    for (let i = 0; i < 200; i++) deep = [deep];
    for (const value of [circle, deep, () => 1, 1n, Symbol('s')]) {
      const options = { templateOptions: { value } };
      expect(errorOf(() => render('x', options)).code).toBe('ERR_INVALID_ARGUMENT');
    }
  });

  it.each([
    [{ tools: {} }, 'tools must be an array'],
    [{ documents: 'x' }, 'documents must be an array'],
    [{ templateOptions: [] }, 'templateOptions must be an object'],
    [{ addGenerationPrompt: 1 }, 'addGenerationPrompt must be a boolean'],
    [{ continueFinalMessage: null }, 'continueFinalMessage must be a boolean'],
    [{ continueFinalMessage: true, addGenerationPrompt: true }, 'cannot both be true'],
  ])('reject the options %j', (options, message) => {
    const error = errorOf(() => render('x', options as ChatTemplateOptions));
    expect([error.code, error.message]).toEqual(['ERR_INVALID_ARGUMENT', expect.stringContaining(message)]);
  });

  it('select the template named tool_use if there are tools', () => {
    const template = new ChatTemplate('a model', { default: 'plain', toolUse: 'tools' }, {});
    const messages = [{ role: 'user', content: 'hi' }];
    expect([template.render(messages), template.render(messages, { tools: [] })]).toEqual(['plain', 'tools']);
  });
});

describe('continueFinalMessage', () => {
  const source =
    '{% for m in messages %}<{{ m.role }}>{{ m.content if m.content is string else m.content[0].text }}</>{% endfor %}' +
    '{% if add_generation_prompt %}<assistant>{% endif %}';
  const trims = '{% for m in messages %}<{{ m.role }}>{{ m.content|trim }}</>{% endfor %}';
  const options = { continueFinalMessage: true };
  const said = (content: ChatMessage['content']): ChatMessage[] => [
    { role: 'user', content: 'The ' },
    { role: 'assistant', content },
  ];

  it.each([
    ['text', source, 'The ', '<user>The </><assistant>The '],
    ['text that the template trims', trims, 'The ', '<user>The</><assistant>The'],
    ['parts', source, [{ type: 'text', text: 'a' }], '<user>The </><assistant>a'],
  ])('ends within the last message: %s', (_, template, content, text) => {
    expect(render(template, options, said(content))).toBe(text);
  });

  it('rejects a message without text, and a template that does not write it', () => {
    for (const [template, content] of [
      [source, null],
      [source, [{ type: 'image' }]],
      ['fixed', 'a text'],
    ] as const) {
      expect(errorOf(() => render(template, options, said(content))).code).toBe('ERR_INVALID_ARGUMENT');
    }
  });
});

describe('parts of a conversation', () => {
  /** The text, with the parts of the user in brackets. */
  const marked = (source: string, messages: ChatMessage[], options: ChatTemplateOptions = {}) =>
    compile(source)
      .renderParts(messages, options, now)
      .map(({ text, fromUser }) => (fromUser ? `[${text}]` : text))
      .join('');
  const content = '  <|end|>\n"ß" a,b  ';
  const user: ChatMessage[] = [{ role: 'user', content }];

  it.each([
    ['{{ bos_token }}<{{ messages[0].role }}>{{ messages[0].content }}</s>', '<s><user>[  <|end|>\n"ß" a,b  ]</s>'],
    ["{{ 'x' + messages[0].content|trim + 'y' }}", 'x[<|end|>\n"ß" a,b]y'],
    ["{{ 'x' ~ messages[0].content.strip()[:7] ~ 1 }}", 'x[<|end|>]1'],
    ["{{ ('x' ~ messages[0].content)|upper }}", 'X[  <|END|>\n"SS" A,B  ]'],
    ["{{ messages[0].content.replace('<|end|>', '<safe>')|trim }}", '<safe>[\n"ß" a,b]'],
    ["{{ 'a-b'.replace('-', messages[0].content|trim) }}", 'a[<|end|>\n"ß" a,b]b'],
    ["{{ messages[0].content.split(',')|join(';') }}", '[  <|end|>\n"ß" a];[b  ]'],
    ['{{ messages[0].content|trim|tojson }}', '"[<|end|>\\n\\"ß\\" a,b]"'],
    ['{{ messages }}', "[{'[role]': 'user', '[content]': '[  <|end|>\\n\"ß\" a,b  ]'}]"],
    ["{{ '%s|{}' % messages[0].content|trim }}", '[<|end|>\n"ß" a,b]|{}'],
    ["{{ '<{}>'.format(messages[0].content.strip()) }}", '<[<|end|>\n"ß" a,b]>'],
    ['{% set x %}<{{ messages[0].content|trim }}>{% endset %}{{ x[1:-1] }}', '[<|end|>\n"ß" a,b]'],
    ['{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(messages[0].content)|trim|reverse }}', '>[  b,a "ß"\n>|dne|<  ]<'],
    ['{{ messages[0].content|trim|indent(1) }}', '[<|end|>]\n ["ß" a,b]'.replaceAll('\\"', '"')],
    ['{{ messages[0].content * 2 }}', '[  <|end|>\n"ß" a,b    <|end|>\n"ß" a,b  ]'],
    ['{% for c in messages[0].content.strip()[:3] %}{{ c }}-{% endfor %}', '[<]-[|]-[e]-'],
  ])('%s', (source, text) => {
    expect(marked(source, user)).toBe(text);
  });

  it('mark names, unknown roles, keys, tools, documents and template options', () => {
    const source = '{{ messages[0].role }} {{ messages[0].name }} {{ tools }} {{ documents[0].text }} {{ x }} {{ 1 }}';
    const messages = [{ role: '<|end|>', content: '', name: 'n' }];
    const options = { tools: [{ a: 1 }], documents: [{ text: 'd' }], templateOptions: { x: 'y' } };
    expect(marked(source, messages, options)).toBe("[<|end|>] [n] [{'[a]': 1}] [d] [y] 1");
  });

  it('keep their marks if the last message is continued', () => {
    const messages = [{ role: 'assistant', content: 'abc' }];
    const source = '<{{ messages[0].content }}>';
    expect(marked(source, messages, { continueFinalMessage: true })).toBe('<[abc]');
  });
});

describe('the limits of a chat template', () => {
  const grow = (operation: string) =>
    `{% set ns = namespace(x=[1], y=[1], t="x", u=messages[0].content) %}{% for i in range(60) %}${operation}{% endfor %}`;
  const limit = ['ERR_INVALID_CHECKPOINT', /takes more than \d+ steps/] as const;
  const depth = ['ERR_INVALID_CHECKPOINT', /nests (deeper than|too deeply)/] as const;
  const hostile: [name: string, source: string, code: string, message: RegExp][] = [
    ['a huge indent', `{{ [${Array(14).fill('[1,1,1]').join()}]|tojson(indent=75000000) }}`, ...limit],
    [
      'JSON of one list many times',
      `{% set b = range(90000)|join("xxxxxxxxxxxxxxxxxxx") %}{% set c = [${Array(140).fill('b').join()}] %}{{ [c, c, c]|tojson }}`,
      ...limit,
    ],
    ['nested repeats', "{% set a = 'x' * 1000 %}{% set b = a * 1000 %}{{ b * 1000 }}", ...limit],
    ['a text that doubles', grow('{% set ns.t = ns.t + ns.t %}'), ...limit],
    ['a text of the user that doubles', `${grow('{% set ns.u = ns.u + "x" + ns.u %}')}{{ ns.u }}`, ...limit],
    ['a list that doubles', grow('{% set ns.x = ns.x + ns.x %}'), ...limit],
    ['a list of lists, printed', `${grow('{% set ns.x = [ns.x, ns.x] %}')}{{ ns.x }}`, ...limit],
    [
      'a list of lists, compared',
      `${grow('{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}')}{{ ns.x == ns.y }}`,
      ...limit,
    ],
    [
      'a tuple as a key',
      '{% set ns = namespace(k=(1,)) %}{% for i in range(60) %}{% set ns.k = (ns.k, ns.k) %}{% endfor %}{{ {ns.k: 1} }}',
      ...limit,
    ],
    [
      'every intermediate list',
      '{% set ns = namespace(all=[]) %}{% for i in range(100000) %}{% set ns.all = ns.all + [ns.all] %}{% endfor %}',
      ...limit,
    ],
    [
      'a deep list',
      '{% set ns = namespace(x=[]) %}{% for i in range(1000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}',
      ...depth,
    ],
    ['blanks within a tag', `{{ ${' '.repeat(190000)})`, 'ERR_INVALID_CHECKPOINT', /syntax error/],
    ['begins of raw blocks', '{% raw'.repeat(30000), ...limit],
    ['begins of comments', '{#'.repeat(95000), 'ERR_INVALID_CHECKPOINT', /Missing end of comment/],
    [
      'ends of raw blocks',
      `{% raw %}${`{%${' '.repeat(1000)}`.repeat(190)}`,
      'ERR_INVALID_CHECKPOINT',
      /Missing end of raw/,
    ],
    ['a template of 2 MB', 'x'.repeat(2e6), 'ERR_INVALID_CHECKPOINT', /longer than 200000 characters/],
    [
      'strftime_now in a loop',
      '{% for i in range(100000) %}{{ strftime_now("%A %B %c" * 100) }}{% endfor %}',
      ...limit,
    ],
    ['endless recursion', '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', ...depth],
    [
      'branching recursion',
      '{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}',
      ...limit,
    ],
    ['nested loops', '{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}', ...limit],
    ['a long range', '{{ range(10**12)|list }}', 'ERR_INVALID_CHECKPOINT', /range of 1000000000000 elements/],
    ['a tower of powers', '{{ 9 ** 9 ** 9 ** 9 }}', 'ERR_UNSUPPORTED_MODEL', /integer beyond/],
    ['a giant integer', `{{ ${'9'.repeat(100000)} }}`, 'ERR_UNSUPPORTED_MODEL', /integer beyond/],
    ['a giant string with escapes', `{{ "${'\\n'.repeat(99000)}" }}`, ...limit],
    ['nested parentheses', `{{ ${'('.repeat(5000)}${')'.repeat(5000)} }}`, ...depth],
    ['nested blocks', '{% if 1 %}'.repeat(3000), ...depth],
    ['a chain of not', `{{ ${'not '.repeat(5000)}1 }}`, ...depth],
    ['a long sum', `{{ 1${'+1'.repeat(20000)} }}`, ...limit],
    ['growth by replace', '{% set a = "x" * 10000 %}{{ a.replace("x", a).replace("x", a) }}', ...limit],
    ['growth by join', '{{ range(100000)|join("a" * 100000) }}', ...limit],
    ['a wide format', '{{ "%999999999d" % 1 }}', 'ERR_UNSUPPORTED_MODEL', /width beyond/],
    ['a wide indent', '{{ "a\nb"|indent(999999999) }}', ...limit],
    [
      'a long search',
      '{% set a = "a" * 100000 %}{% for i in range(100000) %}{{ (a + "b") in a }}{% endfor %}',
      ...limit,
    ],
    ['a slow search', '{% set a = "a" * 60000 %}{{ a.rfind("b" + "a" * 30000) }}', ...limit],
    ['many sets', `{% for i in range(20000) %}${'{% set a = 1 %}'.repeat(900)}{% endfor %}`, ...limit],
    ['long tuples', `{% for i in range(20000) %}{% set a = (${'1,'.repeat(4000)}) %}{% endfor %}`, ...limit],
    [
      'long keys',
      '{% set k = "k" * 40000 %}{% set d = {k: 1} %}{% for i in range(9000) %}{{ d[k] }}{% endfor %}',
      ...limit,
    ],
  ];

  it.each(hostile)('stop %s within 25 ms', (_, source, code, message) => {
    let fastest = Number.POSITIVE_INFINITY; // of several, because other processes take time too
    for (let i = 0; i < 5; i++) {
      const start = performance.now();
      const error = errorOf(() => render(source));
      fastest = Math.min(fastest, performance.now() - start);
      expect([error.code, error.message]).toEqual([code, expect.stringMatching(message)]);
    }
    expect(fastest).toBeLessThan(25);
  });

  it('let no regular expression backtrack', () => {
    const start = performance.now();
    for (const repeated of ['1', ' ', '_1', '1.']) {
      const chat = [{ role: 'user', content: `${repeated.repeat(100_000)}x` }];
      expect(render('{{ messages[0].content|float }} {{ messages[0].content|int }}', {}, chat)).toBe('0.0 0');
    }
    expect(performance.now() - start).toBeLessThan(1000); // with backtracking: many seconds
  });

  it('allow splitting a long message into words', () => {
    const words = Array.from({ length: 20_000 }, (_, i) => `w${i}`);
    const chat = [{ role: 'user', content: ` ${words.join(' \n')} ` }];
    expect(render('{{ messages[0].content.split()|length }}', {}, chat)).toBe('20000');
    expect(render('{{ messages[0].content.rsplit(None, 2)[1:]|join("|") }}', {}, chat)).toBe('w19998|w19999');
    expect(render('{{ " a  b c ".split(None, 1) }}{{ " a  b c ".rsplit(None, 1) }}{{ "  ".split() }}')).toBe(
      "['a', 'b c '][' a  b', 'c'][]",
    );
  });

  it('allow names that begin with ASCII letters', () => {
    expect(render('{% set café = 1 %}{{ café }}{{ caf }}')).toBe('1');
  });

  it('do not accumulate memory', () => {
    const stop = () => {
      for (const [, source] of hostile) errorOf(() => render(source));
    };
    stop();
    const before = process.memoryUsage().rss;
    for (let i = 0; i < 10; i++) stop();
    expect(process.memoryUsage().rss - before).toBeLessThan(200e6);
  });

  it('allow 160,000 blanks, a long chat and a long message', () => {
    expect(render(`{{ messages[0].content }}${' '.repeat(160000)}x`)).toBe(`hi${' '.repeat(160000)}x`);
    const source =
      '{% set ns = namespace(text="") %}{% for m in messages %}{% set ns.text = ns.text + m.role + m.content|trim %}{% endfor %}{{ ns.text }}';
    const chat = Array.from({ length: 2000 }, () => ({ role: 'user', content: 'x'.repeat(400) }));
    expect(render(source, {}, chat)).toBe(`user${'x'.repeat(400)}`.repeat(2000));
    const content = 'ab\n'.repeat(300_000);
    expect(render('{{ messages|tojson }}', {}, [{ role: 'user', content }]).length).toBe(content.length + 300_033);
  });
});
