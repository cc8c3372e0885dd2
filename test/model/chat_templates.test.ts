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

  it('finds the message even if the template writes the same text after it', () => {
    const template = '{% for m in messages %}{{ m.content }}<end of The answer>{% endfor %}';
    expect(render(template, options, said('The answer'))).toBe('The <end of The answer>The answer');
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
