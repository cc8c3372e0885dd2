import { checkObject, invalid, invalidArgument } from '../errors';
import { readOptions } from '../options';

/**
 * What a generated text must be.
 *
 * - `json_object`: a JSON object.
 * - `json_schema`: JSON that is valid by `schema`, a JSON schema (draft 2020-12, without keywords
 *   such as `not` and `uniqueItems`).
 * - `regex`: a text that matches `pattern` as a whole. The syntax is that of Rust's `regex`, which
 *   has no look-around and no back references.
 * - `grammar`: a text of a context-free grammar in the Lark syntax of llguidance, from its rule
 *   `start`.
 */
export type ResponseFormat =
  | {
      /** A JSON object. */
      type: 'json_object';
    }
  | {
      /** JSON of a schema. */
      type: 'json_schema';
      /** The schema. */
      schema: Readonly<Record<string, unknown>> | boolean;
    }
  | {
      /** A match of a regular expression. */
      type: 'regex';
      /** The regular expression. */
      pattern: string;
    }
  | {
      /** A text of a grammar. */
      type: 'grammar';
      /** The grammar. */
      grammar: string;
    };

/** A response format in the terms of the grammar library. */
export interface GrammarSource {
  kind: 'json_schema' | 'regex' | 'lark';
  text: string;
}

const MAX_LENGTH = 2 ** 20;

// A model that draws whitespace tends to draw more of it, without end. So whitespace is one space,
// after a comma or a colon. A schema that has `x-guidance` overrides this.
const WHITESPACE = { whitespace_flexible: false, item_separator: ', ?', key_separator: ': ?' };

/** Checks a response format and converts it. Throws ERR_INVALID_ARGUMENT. */
export function grammarSource(format: ResponseFormat): GrammarSource {
  checkObject('responseFormat', format);
  const source = convert(format);
  if (source.text.length > MAX_LENGTH) {
    throw invalidArgument(
      `responseFormat has ${source.text.length} characters, and at most ${MAX_LENGTH} are ` +
        'supported: simplify it',
    );
  }
  // The library reads strings that end at U+0000.
  if (source.text.includes('\0')) {
    throw invalidArgument('responseFormat contains U+0000: write it as an escape');
  }
  return source;
}

function convert(format: ResponseFormat): GrammarSource {
  switch (format.type) {
    case 'json_object':
      readOptions('responseFormat', format, { type: true });
      return schemaSource({ type: 'object' });
    case 'json_schema':
      return schemaSource(
        readOptions('responseFormat', format, { type: true, schema: true }).schema,
      );
    case 'regex':
      readOptions('responseFormat', format, { type: true, pattern: true });
      checkText('pattern', format.pattern);
      return { kind: 'regex', text: format.pattern };
    case 'grammar':
      readOptions('responseFormat', format, { type: true, grammar: true });
      checkText('grammar', format.grammar);
      return { kind: 'lark', text: format.grammar };
    default:
      throw invalid(
        'responseFormat.type',
        "'json_object', 'json_schema', 'regex' or 'grammar'",
        (format as { type?: unknown }).type,
      );
  }
}

function schemaSource(schema: Readonly<Record<string, unknown>> | boolean): GrammarSource {
  if (typeof schema === 'boolean') return { kind: 'json_schema', text: String(schema) };
  checkObject('responseFormat.schema', schema);
  let text: string | undefined;
  try {
    text = JSON.stringify({ 'x-guidance': WHITESPACE, ...schema });
  } catch (error) {
    throw invalidArgument(
      `responseFormat.schema cannot be written as JSON: ${(error as Error).message}`,
    );
  }
  if (text === undefined) {
    throw invalidArgument('responseFormat.schema has a toJSON that returns no JSON: remove it');
  }
  return { kind: 'json_schema', text };
}

function checkText(name: string, value: unknown): void {
  if (typeof value !== 'string') throw invalid(`responseFormat.${name}`, 'a string', value);
}
