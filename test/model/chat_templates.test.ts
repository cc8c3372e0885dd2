// Chat templates against Python's jinja2: see test/model/chat_templates/reference.py.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { type ChatMessage, ChatTemplate, type ChatTemplateOptions } from '../../lib/chat';
import { DiffqkvError } from '../../lib/errors';
import { compile, errorOf, render } from './render_template';

const folder = join(__dirname, 'chat_templates');

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

/** The messages of errors that are not Python's, by template. */
const messages = new Map<string, string>();
{
  const lines = readFileSync(join(folder, 'messages.txt'), 'utf8').split('\n');
  const pairs = lines.filter((line) => line !== '' && !line.startsWith('# '));
  for (let i = 0; i < pairs.length; i += 2) messages.set(pairs[i] as string, (pairs[i + 1] as string).trim());
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
          const message = messages.get(name) ?? result.error.replace(/^\w+: /, '');
          expect([key, got]).toEqual([key, expect.any(DiffqkvError)]);
          expect((got as DiffqkvError).message).toContain(message);
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

it.each([...messages])('the message of %s', (source, message) => {
  expect(errorOf(() => render(source.replaceAll('\\n', '\n'))).message).toBe(message);
});

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
    for (const [value, message] of [
      [circle, 'x.inner[0] contains itself'],
      [deep, `x${'[0]'.repeat(100)} nests deeper than 100 levels`],
      [() => 1, 'x must be a value that JSON has, not a function'],
      [1n, 'x must be a value that JSON has, not 1n'],
      [[Symbol('s')], 'x[0] must be a value that JSON has, not Symbol(s)'],
    ]) {
      const error = errorOf(() => render('', { templateOptions: { x: value } }));
      expect([error.code, error.message]).toEqual(['ERR_INVALID_ARGUMENT', message]);
    }
  });

  it('have the numbers of JavaScript, and a value that occurs twice', () => {
    const twice = { a: [1, undefined], b: undefined };
    const x = [0, -0, 1.5, 2 ** 60, Number.NaN, -Infinity, twice, twice, null, true];
    expect(render('{{ x }}', { templateOptions: { x } })).toBe(
      "[0, 0, 1.5, 1.152921504606847e+18, nan, -inf, {'a': [1, None]}, {'a': [1, None]}, None, True]",
    );
  });

  it.each([
    [{ tools: {} }, 'tools must be an array'],
    [{ tools: [{ a: () => 1 }] }, 'tools[0].a must be a value that JSON has, not a function'],
    [{ documents: [1n] }, 'documents[0] must be a value that JSON has, not 1n'],
    [{ templateOptions: { b: [1n] } }, 'b[0] must be a value that JSON has, not 1n'],
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

  it('finds the message even if the template writes the same text after it', () => {
    const template = '{% for m in messages %}{{ m.content }}<end of The answer>{% endfor %}';
    expect(render(template, options, said('The answer'))).toBe('The <end of The answer>The answer');
  });

  it('finds the message in the last part of the conversation that has it', () => {
    const template = '{{ messages[1].content }}<{{ messages[0].content }}>';
    expect(render(template, options, said('The answer'))).toBe('The answer');
    const twice = '{{ messages[1].content }},{{ messages[1].content }}<{{ messages[0].content }}>';
    expect(render(twice, options, said('a'))).toBe('a,a');
    expect(render('<{{ messages[1].content|upper }}>', options, said('A'))).toBe('<A');
    expect(render('x{{ messages[1].content }}y', options, said('  '))).toBe('x  y');
    expect(render('x{{ messages[1].content }}y', options, said(' a '))).toBe('x a');
  });

  it('rejects a message without text, and a template that does not write it', () => {
    const noText = 'continueFinalMessage: the last message has no text to continue';
    for (const [template, content, message] of [
      ['fixed', null, noText],
      ['fixed', [{ type: 'image', text: 5 }], noText],
      ['fixed', 'a text', 'continueFinalMessage: the chat template does not write the last message as it is'],
    ] as const) {
      const error = errorOf(() => render(template, options, said(content)));
      expect([error.code, error.message]).toEqual(['ERR_INVALID_ARGUMENT', message]);
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
    ['{{ dict(**{messages[0].content|trim: 1}) }}', '{\'[<|end|>\\n"ß" a,b]\': 1}'],
    [
      '{% macro f() %}{{ kwargs|list|first }}{% endmacro %}{{ f(**{messages[0].content|trim: 1}) }}',
      '[<|end|>\n"ß" a,b]',
    ],
    ["{{ (messages[0].content|trim ~ '%%') % () }}", '[<|end|>\n"ß" a,b]%'],
    ["{{ (messages[0].content[2:3] ~ '{{{:>2}') .format('a') }}", '[<]{[ a]'],
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

describe('strftime_now', () => {
  const format =
    '%a %A %b %B %c|%C %d %D %e %F|%g %G %h %H %I %j|%k %l %m %M %n%p %P|%r %R %S %t%T|%u %U %V %w %W|%x %X %y %Y %%|%-d %-m %-H %-I %-j %-y %_d %_H %_j %^a %^B %0e';
  // From Python's datetime.strftime.
  it.each([
    [
      [2023, 1, 1, 0, 0, 0],
      'Sun Sunday Jan January Sun Jan  1 00:00:00 2023|20 01 01/01/23  1 2023-01-01|22 2022 Jan 00 12 001| 0 12 01 00 \nAM am|12:00:00 AM 00:00 00 \t00:00:00|7 01 52 0 00|01/01/23 00:00:00 23 2023 %|1 1 0 12 1 23  1  0   1 SUN JANUARY 01',
    ],
    [
      [2021, 1, 3, 12, 30, 45],
      'Sun Sunday Jan January Sun Jan  3 12:30:45 2021|20 03 01/03/21  3 2021-01-03|20 2020 Jan 12 12 003|12 12 01 30 \nPM pm|12:30:45 PM 12:30 45 \t12:30:45|7 01 53 0 00|01/03/21 12:30:45 21 2021 %|3 1 12 12 3 21  3 12   3 SUN JANUARY 03',
    ],
    [
      [2024, 12, 30, 13, 5, 9],
      'Mon Monday Dec December Mon Dec 30 13:05:09 2024|20 30 12/30/24 30 2024-12-30|25 2025 Dec 13 01 365|13  1 12 05 \nPM pm|01:05:09 PM 13:05 09 \t13:05:09|1 52 01 1 53|12/30/24 13:05:09 24 2024 %|30 12 13 1 365 24 30 13 365 MON DECEMBER 30',
    ],
    [
      [2026, 10, 7, 23, 59, 59],
      'Wed Wednesday Oct October Wed Oct  7 23:59:59 2026|20 07 10/07/26  7 2026-10-07|26 2026 Oct 23 11 280|23 11 10 59 \nPM pm|11:59:59 PM 23:59 59 \t23:59:59|3 40 41 3 40|10/07/26 23:59:59 26 2026 %|7 10 23 11 280 26  7 23 280 WED OCTOBER 07',
    ],
    [
      [2020, 2, 29, 11, 0, 1],
      'Sat Saturday Feb February Sat Feb 29 11:00:01 2020|20 29 02/29/20 29 2020-02-29|20 2020 Feb 11 11 060|11 11 02 00 \nAM am|11:00:01 AM 11:00 01 \t11:00:01|6 08 09 6 08|02/29/20 11:00:01 20 2020 %|29 2 11 11 60 20 29 11  60 SAT FEBRUARY 29',
    ],
    [
      [2000, 12, 31, 1, 2, 3],
      'Sun Sunday Dec December Sun Dec 31 01:02:03 2000|20 31 12/31/00 31 2000-12-31|00 2000 Dec 01 01 366| 1  1 12 02 \nAM am|01:02:03 AM 01:02 03 \t01:02:03|7 53 52 0 52|12/31/00 01:02:03 00 2000 %|31 12 1 1 366 0 31  1 366 SUN DECEMBER 31',
    ],
    [
      [2018, 7, 2, 12, 0, 0],
      'Mon Monday Jul July Mon Jul  2 12:00:00 2018|20 02 07/02/18  2 2018-07-02|18 2018 Jul 12 12 183|12 12 07 00 \nPM pm|12:00:00 PM 12:00 00 \t12:00:00|1 26 27 1 27|07/02/18 12:00:00 18 2018 %|2 7 12 12 183 18  2 12 183 MON JULY 02',
    ],
  ])('of %j', ([year = 0, month = 0, ...rest], text) => {
    const at = new Date(year, month - 1, ...(rest as [number, number, number, number]));
    const template = compile(`{{ strftime_now(${JSON.stringify(format)}) }}`);
    expect(template.renderParts([{ role: 'user', content: '' }], {}, at).map(({ text }) => text)).toEqual([text]);
  });

  it('names months and days', () => {
    const template = compile("{{ strftime_now('%B %b %A %a') }}");
    const names = Array.from({ length: 12 }, (_, month) => {
      const parts = template.renderParts([{ role: 'user', content: '' }], {}, new Date(2024, month, month + 1));
      return parts[0]?.text;
    });
    expect(names).toEqual([
      ...['January Jan Monday Mon', 'February Feb Friday Fri', 'March Mar Sunday Sun', 'April Apr Thursday Thu'],
      ...['May May Sunday Sun', 'June Jun Thursday Thu', 'July Jul Sunday Sun', 'August Aug Thursday Thu'],
      ...[
        'September Sep Monday Mon',
        'October Oct Thursday Thu',
        'November Nov Monday Mon',
        'December Dec Thursday Thu',
      ],
    ]);
  });

  it('has the seconds since 1970 in local time', () => {
    const at = new Date(2024, 6, 6, 9, 5, 3);
    const parts = compile("{{ strftime_now('%s') }}").renderParts([{ role: 'user', content: '' }], {}, at);
    expect(parts[0]?.text).toBe(String(at.getTime() / 1000));
  });
});
