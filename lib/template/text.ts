import { spend, spendCharacters } from './fuel';

/** A piece of text. `fromUser` is true if it comes from the conversation. */
export interface Part {
  text: string;
  fromUser: boolean;
}

const NONE: readonly number[] = [];

/**
 * A string of a template, which knows which of its characters come from the conversation: user text
 * must not become control tokens. Immutable. Positions are in UTF-16 code units, unless they are
 * called code points.
 */
export class Text {
  readonly value: string;
  /** Boundaries of the spans of user text: start, end, start, end ... */
  #spans: readonly number[] | undefined;
  /** The operands of a sum whose spans nobody has asked for. */
  #operands: readonly [Text, Text] | undefined;
  #isBmp: boolean | undefined;

  private constructor(value: string, spans: readonly number[] | undefined) {
    this.value = value;
    this.#spans = spans;
  }

  /** Text of the template. */
  static plain(value: string): Text {
    return new Text(value, NONE);
  }

  /** Text of the conversation. */
  static user(value: string): Text {
    return new Text(value, value === '' ? NONE : [0, value.length]);
  }

  static withSpans(value: string, spans: readonly number[]): Text {
    return new Text(value, spans.length === 0 ? NONE : spans);
  }

  static concat(left: Text, right: Text): Text {
    if (left.value === '') return right;
    if (right.value === '') return left;
    // The sum shares the memory of the longer operand.
    spendCharacters(Math.min(left.value.length, right.value.length));
    const isPlain = left.#spans === NONE && right.#spans === NONE;
    const sum = new Text(left.value + right.value, isPlain ? NONE : undefined);
    if (!isPlain) sum.#operands = [left, right];
    return sum;
  }

  get length(): number {
    return this.value.length;
  }

  get spans(): readonly number[] {
    if (this.#spans === undefined) {
      const spans: number[] = [];
      const pending: [Text, number][] = [[this, 0]];
      while (pending.length > 0) {
        spend(1);
        const [text, at] = pending.pop() as [Text, number];
        if (text.#spans !== undefined) appendSpans(spans, text.#spans, at);
        else if (text.#operands !== undefined) {
          const [left, right] = text.#operands;
          pending.push([right, at + left.length], [left, at]);
        }
      }
      this.#spans = spans.length === 0 ? NONE : spans;
      this.#operands = undefined;
    }
    return this.#spans;
  }

  /** Whether every code point is one code unit. */
  get isBmp(): boolean {
    if (this.#isBmp === undefined) {
      spendCharacters(this.length);
      this.#isBmp = !/[\ud800-\udbff]/.test(this.value);
    }
    return this.#isBmp;
  }

  /** Length in code points. */
  get size(): number {
    if (this.isBmp) return this.length;
    spendCharacters(this.length * 4);
    let size = 0;
    for (const _ of this.value) size++;
    return size;
  }

  slice(start: number, end = this.length): Text {
    if (start <= 0 && end >= this.length) return this;
    if (start >= end) return Text.plain('');
    spendCharacters(end - start);
    const value = this.value.slice(start, end);
    const whole = this.spans;
    if (whole === NONE) return Text.plain(value);
    if (whole.length === 2 && whole[0] === 0 && whole[1] === this.length) return Text.user(value);
    const spans: number[] = [];
    for (let i = 0; i < whole.length; i += 2) {
      spend(1);
      const from = Math.max(whole[i] as number, start);
      const to = Math.min(whole[i + 1] as number, end);
      if (from < to) spans.push(from - start, to - start);
    }
    return Text.withSpans(value, spans);
  }

  /** One Text for each code point. */
  codePoints(): Text[] {
    const points: Text[] = [];
    for (const { text, fromUser } of this.parts()) {
      for (const point of text) {
        spend(2);
        points.push(fromUser ? Text.user(point) : Text.plain(point));
      }
    }
    return points;
  }

  parts(): Part[] {
    const parts: Part[] = [];
    const { spans } = this;
    const put = (start: number, end: number, fromUser: boolean) => {
      if (start < end) parts.push({ text: this.value.slice(start, end), fromUser });
    };
    spend(spans.length);
    let end = 0;
    for (let i = 0; i < spans.length; i += 2) {
      put(end, spans[i] as number, false);
      end = spans[i + 1] as number;
      put(spans[i] as number, end, true);
    }
    put(end, this.length, false);
    return parts;
  }

  /** Applies a function that may change the length to each part. */
  map(change: (value: string) => string): Text {
    spendCharacters(this.length * 2);
    const { spans } = this;
    if (spans === NONE) return Text.plain(change(this.value));
    if (spans.length === 2 && spans[0] === 0 && spans[1] === this.length) {
      return Text.user(change(this.value));
    }
    return Builder.join(
      this.parts().map(({ text, fromUser }) =>
        fromUser ? Text.user(change(text)) : Text.plain(change(text)),
      ),
    );
  }

  /**
   * Like `map` for a change that depends on the context of a character, such as the case of words.
   * If the parts do not add up to the changed whole, all of it counts as user text.
   */
  mapWhole(change: (value: string) => string): Text {
    const byPart = this.map(change);
    const whole = this.spans === NONE ? byPart.value : change(this.value);
    return byPart.value === whole ? byPart : Text.user(whole);
  }
}

function appendSpans(spans: number[], added: readonly number[], at: number): void {
  spend(added.length);
  for (let i = 0; i < added.length; i += 2) {
    const start = (added[i] as number) + at;
    const end = (added[i + 1] as number) + at;
    if (spans.at(-1) === start) spans[spans.length - 1] = end;
    else spans.push(start, end);
  }
}

/** Concatenates many texts. */
export class Builder {
  readonly #texts: Text[] = [];

  static join(texts: readonly Text[], separator?: Text): Text {
    const builder = new Builder();
    texts.forEach((text, i) => {
      if (i > 0 && separator !== undefined) builder.add(separator);
      builder.add(text);
    });
    return builder.text();
  }

  add(text: Text | string): this {
    spendCharacters(text.length);
    if (text.length > 0) this.#texts.push(typeof text === 'string' ? Text.plain(text) : text);
    return this;
  }

  text(): Text {
    const texts = this.#texts;
    if (texts.length <= 1) return texts[0] ?? Text.plain('');
    const value = texts.map((text) => text.value).join('');
    const spans: number[] = [];
    let at = 0;
    for (const text of texts) {
      appendSpans(spans, text.spans, at);
      at += text.length;
    }
    return Text.withSpans(value, spans);
  }
}
