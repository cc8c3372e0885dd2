import { TemplateError, withFuel } from './fuel';
import { globals } from './globals';
import { tokenize } from './lexer';
import { parse } from './parser';
import { Scope } from './scope';
import { Builder, type Text } from './text';
import type { Value } from './values';

// A template of a model takes about one unit for each character to parse.
const MAX_CHARACTERS = 200_000;
const PARSE_FUEL = 50_000;

/** A chat template, by the rules of Jinja as transformers sets it up. */
export class Template {
  readonly #run: ReturnType<typeof parse>;

  /** Throws a TemplateError if `source` is malformed or too large. */
  constructor(source: string) {
    if (source.length > MAX_CHARACTERS) {
      throw new TemplateError('limit', `is longer than ${MAX_CHARACTERS} characters`);
    }
    this.#run = withFuel(PARSE_FUEL, () => parse(tokenize(source)));
  }

  /** Throws a TemplateError. `fuel` limits the work. `now` is the time of strftime_now. */
  render(variables: Map<string, Value>, { fuel, now }: { fuel: number; now: Date }): Text {
    return withFuel(fuel, () => {
      const out = new Builder();
      this.#run(new Scope(new Scope(new Scope(undefined, globals(now)), variables)), out);
      return out.text();
    });
  }
}
