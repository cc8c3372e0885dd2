import { nested, pythonError, spendCharacters } from './fuel';
import { Builder, Text } from './text';
import { compare, Dict, Float, floatText, Tuple, typeName, type Value } from './values';

/** Options of Python's json.dumps. */
export interface JsonOptions {
  ensureAscii: boolean;
  /** White space of one level, or undefined for a single line. */
  indent: Text | undefined;
  itemSeparator: Text;
  keySeparator: Text;
  sortKeys: boolean;
}

/** json.dumps(value). */
export function toJson(value: Value, options: JsonOptions): Text {
  const builder = new Builder();
  write(value, options, 0, builder);
  return builder.text();
}

function write(value: Value, options: JsonOptions, level: number, builder: Builder): void {
  if (value === null) builder.add('null');
  else if (typeof value === 'boolean' || typeof value === 'number') builder.add(String(value));
  else if (value instanceof Float) builder.add(jsonFloat(value.value));
  else if (value instanceof Text) builder.add(quote(value, options.ensureAscii));
  else if (Array.isArray(value)) writeList(value, options, level, builder);
  else if (value instanceof Tuple) writeList(value.items, options, level, builder);
  else if (value instanceof Dict) writeDict(value, options, level, builder);
  else throw pythonError(`Object of type ${typeName(value)} is not JSON serializable`);
}

function writeList(
  items: readonly Value[],
  options: JsonOptions,
  level: number,
  builder: Builder,
): void {
  const writers = items.map((item) => () => write(item, options, level + 1, builder));
  writeItems('[', writers, ']', options, level, builder);
}

function writeDict(value: Dict, options: JsonOptions, level: number, builder: Builder): void {
  const entries = value.entries();
  if (options.sortKeys) entries.sort(([a], [b]) => compare(a, b, '<'));
  const writers = entries.map(([key, item]) => () => {
    builder.add(quote(keyText(key), options.ensureAscii)).add(options.keySeparator);
    write(item, options, level + 1, builder);
  });
  writeItems('{', writers, '}', options, level, builder);
}

function writeItems(
  open: string,
  writers: (() => void)[],
  close: string,
  options: JsonOptions,
  level: number,
  builder: Builder,
): void {
  builder.add(open);
  const newLine = (depth: number) => {
    const { indent } = options;
    if (indent === undefined || writers.length === 0) return;
    builder.add('\n');
    for (let i = 0; i < depth; i++) builder.add(indent);
  };
  nested(() => {
    writers.forEach((writeItem, i) => {
      if (i > 0) builder.add(options.itemSeparator);
      newLine(level + 1);
      writeItem();
    });
  });
  newLine(level);
  builder.add(close);
}

function keyText(key: Value): Text {
  if (key instanceof Text) return key;
  if (key === null) return Text.plain('null');
  if (typeof key === 'boolean' || typeof key === 'number') return Text.plain(String(key));
  if (key instanceof Float) return Text.plain(jsonFloat(key.value));
  throw pythonError(`keys must be str, int, float, bool or None, not ${typeName(key)}`);
}

function jsonFloat(value: number): string {
  if (Number.isNaN(value)) return 'NaN';
  if (!Number.isFinite(value)) return value > 0 ? 'Infinity' : '-Infinity';
  return floatText(value);
}

const ESCAPES: Record<string, string> = {
  ...{ '"': '\\"', '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t', '\f': '\\f', '\b': '\\b' },
};

function quote(text: Text, ensureAscii: boolean): Text {
  spendCharacters(text.length);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: JSON escapes control characters.
  const pattern = ensureAscii ? /["\\]|[^ -~]/g : /["\\\x00-\x1f]/g;
  const escaped = (c: string) =>
    ESCAPES[c] ?? `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`;
  return new Builder()
    .add('"')
    .add(text.map((part) => part.replace(pattern, escaped)))
    .add('"')
    .text();
}
