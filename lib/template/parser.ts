import { runFilter, runTest } from './filters';
import { nested, pythonError, spend, syntaxError, unsupported } from './fuel';
import type { Token } from './lexer';
import { Loop } from './loop';
import { Macro, type MacroDefinition } from './macro';
import { arithmetic, attribute, compares, item, slice } from './operators';
import { Scope } from './scope';
import { Builder, Text } from './text';
import {
  type Arguments,
  Dict,
  elements,
  Float,
  int,
  Markup,
  Namespace,
  PyObject,
  Tuple,
  toNumber,
  toText,
  truth,
  typeName,
  Undefined,
  type Value,
} from './values';

// The parser translates a template into functions: one for each expression and each statement.

/** `caller` is the body of a call block. */
type Expression = (scope: Scope, caller?: Value) => Value;
type Step = (value: Value, scope: Scope, caller?: Value) => Value;
type Target = (scope: Scope, value: Value) => void;
type CollectArguments = (scope: Scope) => Arguments;

type Signal = 'break' | 'continue' | undefined;
type Statement = (scope: Scope, out: Builder) => Signal;

const CONSTANTS: Record<string, Value> = {
  ...{ true: true, True: true, false: false, False: false, none: null, None: null },
};
const COMPARISONS = new Set(['==', '!=', '<', '<=', '>', '>=']);

function chain(base: Expression, steps: readonly Step[]): Expression {
  if (steps.length === 0) return base;
  const last = steps.length - 1;
  return (scope, caller) => {
    let value = base(scope);
    for (let i = 0; i <= last; i++) {
      value = (steps[i] as Step)(value, scope, i === last ? caller : undefined);
    }
    return value;
  };
}

function sequence(statements: readonly Statement[]): Statement {
  return (scope, out) => {
    for (const statement of statements) {
      spend(1);
      const signal = statement(scope, out);
      if (signal !== undefined) return signal;
    }
    return undefined;
  };
}

function print(value: Value): Text {
  return value instanceof Markup ? value.text : toText(value);
}

function unpack(targets: readonly Target[]): Target {
  return (scope, value) => {
    const items = elements(value);
    if (items.length !== targets.length) {
      const found = items.length > targets.length ? 'too many' : 'not enough';
      throw pythonError(`${found} values to unpack (expected ${targets.length})`);
    }
    targets.forEach((target, i) => {
      target(scope, items[i] as Value);
    });
  };
}

function invoke(callee: Value, args: Arguments): Value {
  spend(1);
  if (callee instanceof Undefined) throw callee.fail();
  if (callee instanceof PyObject) return callee.call(args);
  throw pythonError(`'${typeName(callee)}' object is not callable`);
}

/** Parses the tokens of a template. Returns what renders it. */
export function parse(tokens: readonly Token[]): Statement {
  return new Parser(tokens).template();
}

class Parser {
  readonly #tokens: readonly Token[];
  #at = 0;
  #loops = 0;
  /** The names that the macros around the current position use. */
  #uses: Set<string>[] = [];
  /** The last expression that ends with a call. */
  #call: Expression | undefined;

  constructor(tokens: readonly Token[]) {
    this.#tokens = tokens;
  }

  template(): Statement {
    return this.#body([]).run;
  }

  // Tokens.

  #peek(offset = 0): Token | undefined {
    return this.#tokens[this.#at + offset];
  }

  #next(): Token {
    const token = this.#tokens[this.#at];
    if (token === undefined) throw this.#unexpected();
    this.#at++;
    return token;
  }

  #is(type: Token['type'], value?: string, offset = 0): boolean {
    const token = this.#tokens[this.#at + offset];
    return token?.type === type && (value === undefined || token.value === value);
  }

  #skip(type: Token['type'], value: string): boolean {
    const isNext = this.#is(type, value);
    if (isNext) this.#at++;
    return isNext;
  }

  #expect(type: Token['type'], value?: string): Token {
    if (!this.#is(type, value)) throw this.#unexpected(value ?? type);
    return this.#next();
  }

  #unexpected(expected?: string): Error {
    const token = this.#peek();
    const hint = expected === undefined ? '' : `, expected '${expected}'`;
    const line = token?.line ?? this.#tokens.at(-1)?.line ?? 1;
    if (token === undefined) return syntaxError(`unexpected end of template${hint}`, line);
    const found = token.type === 'end' ? `end of ${token.value}` : token.value;
    return syntaxError(`unexpected '${found}'${hint}`, line);
  }

  // Statements.

  /** The statements up to one of `ends`, whose tag has been read up to its name. */
  #body(ends: readonly string[]): { run: Statement; end: string } {
    return nested(() => {
      const statements: Statement[] = [];
      for (;;) {
        const token = this.#peek();
        if (token === undefined) {
          if (ends.length === 0) return { run: sequence(statements), end: '' };
          throw this.#unexpected(ends.join(' or '));
        }
        this.#at++;
        if (token.type === 'data') {
          const text = Text.plain(token.value);
          statements.push((_, out) => void out.add(text));
        } else if (token.value === 'print') {
          const expression = this.#tuple();
          this.#expect('end', 'print');
          statements.push((scope, out) => void out.add(print(expression(scope))));
        } else {
          const { value: name, line } = this.#expect('name');
          if (ends.includes(name)) return { run: sequence(statements), end: name };
          statements.push(this.#statement(name, line));
        }
      }
    });
  }

  #endTag(): void {
    this.#expect('end', 'block');
  }

  /** The body of a tag, up to `end` and the end of its tag. */
  #block(end: string): Statement {
    this.#endTag();
    const { run } = this.#body([end]);
    this.#endTag();
    return run;
  }

  #statement(name: string, line: number): Statement {
    switch (name) {
      case 'if':
        return this.#if();
      case 'for':
        return this.#for();
      case 'set':
        return this.#set();
      case 'macro':
        return this.#macro();
      case 'call':
        return this.#callBlock();
      case 'filter':
        return this.#filterBlock();
      case 'with':
        return this.#with();
      case 'generation': {
        const body = this.#outsideLoop(() => this.#block('endgeneration'));
        return (scope, out) => body(new Scope(scope), out);
      }
      case 'break':
      case 'continue':
        if (this.#loops === 0) throw syntaxError(`'${name}' outside loop`, line);
        this.#endTag();
        return () => name;
      default:
        if (/^(end|else$|elif$)/.test(name)) {
          throw syntaxError(`Encountered unknown tag '${name}'.`, line);
        }
        throw unsupported(`the tag ${name} (line ${line})`);
    }
  }

  #outsideLoop<T>(parseBody: () => T): T {
    const loops = this.#loops;
    this.#loops = 0;
    const body = parseBody();
    this.#loops = loops;
    return body;
  }

  #if(): Statement {
    const branches: { test: Expression; body: Statement }[] = [];
    let end = 'if';
    while (end !== 'endif' && end !== 'else') {
      spend(1);
      const test = this.#tuple(false);
      this.#endTag();
      const part = this.#body(['elif', 'else', 'endif']);
      branches.push({ test, body: part.run });
      end = part.end;
    }
    let otherwise: Statement = () => undefined;
    if (end === 'else') otherwise = this.#block('endif');
    else this.#endTag();
    return (scope, out) => {
      for (const { test, body } of branches) {
        spend(1);
        if (truth(test(scope))) return body(scope, out);
      }
      return otherwise(scope, out);
    };
  }

  #for(): Statement {
    const target = this.#targets();
    this.#expect('name', 'in');
    const iterable = this.#tuple(false);
    const test = this.#skip('name', 'if') ? this.#expression() : undefined;
    const isRecursive = this.#skip('name', 'recursive');
    this.#endTag();
    this.#loops++;
    const { run: body, end } = this.#body(['endfor', 'else']);
    this.#loops--;
    let otherwise: Statement | undefined;
    if (end === 'else') otherwise = this.#block('endfor');
    else this.#endTag();

    const run = (scope: Scope, out: Builder, value: Value, depth: number): Signal => {
      let items = elements(value);
      if (test) {
        items = items.filter((element) => {
          const inner = new Scope(scope);
          target(inner, element);
          return truth(test(inner));
        });
      }
      const recurse = (inner: Value, level: number) => {
        const rendered = new Builder();
        nested(() => run(scope, rendered, inner, level));
        return rendered.text();
      };
      const loop = new Loop(items, depth, isRecursive ? recurse : undefined);
      // As in Jinja, an iteration that `continue` or `break` ends does not count.
      let isEmpty = true;
      for (; loop.index < items.length; loop.index++) {
        spend(4);
        const inner = new Scope(scope);
        inner.set('loop', loop);
        target(inner, items[loop.index] as Value);
        const signal = body(inner, out);
        if (signal === 'break') break;
        if (signal === undefined) isEmpty = false;
      }
      return isEmpty ? otherwise?.(new Scope(scope), out) : undefined;
    };
    return (scope, out) => run(scope, out, iterable(scope), 0);
  }

  #set(): Statement {
    const target = this.#targets();
    if (this.#skip('operator', '=')) {
      const value = this.#tuple();
      this.#endTag();
      return (scope) => void target(scope, value(scope));
    }
    const steps: Step[] = [];
    while (this.#skip('operator', '|')) steps.push(this.#filter());
    const body = this.#block('endset');
    return (scope) => {
      const text = new Builder();
      const signal = body(new Scope(scope), text);
      if (signal !== undefined) return signal;
      target(
        scope,
        steps.reduce<Value>((value, step) => step(value, scope), text.text()),
      );
      return undefined;
    };
  }

  #signature(): MacroDefinition['parameters'] {
    const parameters: MacroDefinition['parameters'] = [];
    this.#expect('operator', '(');
    while (!this.#skip('operator', ')')) {
      if (parameters.length > 0) this.#expect('operator', ',');
      const { value: name, line } = this.#expect('name');
      const fallback = this.#skip('operator', '=') ? this.#expression() : undefined;
      if (!fallback && parameters.at(-1)?.fallback) {
        throw syntaxError('non-default argument follows default argument', line);
      }
      parameters.push({ name, fallback });
    }
    return parameters;
  }

  #definition(name: string, end: string, parameters: MacroDefinition['parameters']) {
    const uses = new Set<string>();
    this.#uses.push(uses);
    const body = this.#outsideLoop(() => this.#block(end));
    this.#uses.pop();
    const run = (scope: Scope) => {
      const out = new Builder();
      body(scope, out);
      return out.text();
    };
    return { name, parameters, uses, run };
  }

  #macro(): Statement {
    const { value: name } = this.#expect('name');
    const definition = this.#definition(name, 'endmacro', this.#signature());
    return (scope) => void scope.set(name, new Macro(definition, () => new Scope(scope)));
  }

  #callBlock(): Statement {
    const parameters = this.#is('operator', '(') ? this.#signature() : [];
    const expression = this.#expression();
    if (this.#call !== expression) throw this.#unexpected('a call');
    const definition = this.#definition('caller', 'endcall', parameters);
    return (scope, out) => {
      const caller = new Macro(definition, () => new Scope(scope));
      out.add(print(expression(scope, caller)));
      return undefined;
    };
  }

  #filterBlock(): Statement {
    const steps = [this.#filter()];
    while (this.#skip('operator', '|')) steps.push(this.#filter());
    const body = this.#block('endfilter');
    return (scope, out) => {
      const text = new Builder();
      const signal = body(new Scope(scope), text);
      // As in Jinja, `continue` and `break` drop the text.
      if (signal !== undefined) return signal;
      const value = steps.reduce<Value>((input, step) => step(input, scope), text.text());
      out.add(print(value));
      return undefined;
    };
  }

  #with(): Statement {
    const assignments: { target: Target; value: Expression }[] = [];
    while (!this.#is('end')) {
      if (assignments.length > 0) this.#expect('operator', ',');
      const target = this.#target();
      this.#expect('operator', '=');
      assignments.push({ target, value: this.#expression() });
    }
    const body = this.#block('endwith');
    return (scope, out) => {
      const inner = new Scope(scope);
      for (const { target, value } of assignments) target(inner, value(scope));
      return body(inner, out);
    };
  }

  /** One or more targets of an assignment. Several are unpacked. */
  #targets(): Target {
    const first = this.#target();
    if (!this.#is('operator', ',')) return first;
    const targets = [first];
    while (this.#skip('operator', ',')) {
      if (this.#is('operator', ')') || this.#is('end')) break;
      targets.push(this.#target());
    }
    return unpack(targets);
  }

  #target(): Target {
    if (this.#skip('operator', '(')) {
      const target = nested(() => this.#targets());
      this.#expect('operator', ')');
      return target;
    }
    const { value: name, line } = this.#expect('name');
    if (Object.hasOwn(CONSTANTS, name)) throw syntaxError(`can't assign to '${name}'`, line);
    if (!this.#skip('operator', '.')) return (scope, value) => scope.set(name, value);
    const { value: key } = this.#expect('name');
    return (scope, value) => {
      const owner = scope.get(name);
      if (!(owner instanceof Namespace)) {
        throw pythonError('cannot assign attribute on non-namespace object');
      }
      owner.values.set(key, value);
    };
  }

  // Expressions, from the loosest operator to the tightest.

  /** An expression, or several with commas between them. */
  #tuple(withCondition = true): Expression {
    const parseOne = () => (withCondition ? this.#expression() : this.#or());
    const first = parseOne();
    if (!this.#is('operator', ',')) return first;
    const items = [first];
    while (this.#skip('operator', ',')) {
      if (this.#is('end') || this.#is('operator', ')')) break;
      items.push(parseOne());
    }
    return (scope) => {
      spend(items.length);
      return new Tuple(items.map((one) => one(scope)));
    };
  }

  #expression(): Expression {
    return nested(() => {
      let value = this.#or();
      while (this.#skip('name', 'if')) {
        const then = value;
        const test = this.#or();
        const otherwise = this.#skip('name', 'else') ? this.#expression() : undefined;
        value = (scope) => {
          spend(1);
          if (truth(test(scope))) return then(scope);
          const message =
            'the inline if-expression evaluated to false and no else section was defined.';
          return otherwise ? otherwise(scope) : new Undefined(message);
        };
      }
      return value;
    });
  }

  #or(): Expression {
    return this.#logical('or', () => this.#logical('and', () => this.#not()));
  }

  #logical(operator: 'and' | 'or', operand: () => Expression): Expression {
    const first = operand();
    if (!this.#is('name', operator)) return first;
    const operands = [first];
    while (this.#skip('name', operator)) operands.push(operand());
    return (scope) => {
      let value = first(scope);
      for (let i = 1; i < operands.length && truth(value) === (operator === 'and'); i++) {
        spend(1);
        value = (operands[i] as Expression)(scope);
      }
      return value;
    };
  }

  #not(): Expression {
    if (!this.#skip('name', 'not')) return this.#comparison();
    const operand = nested(() => this.#not());
    return (scope) => !truth(operand(scope));
  }

  #comparison(): Expression {
    const first = this.#sum();
    const rest: { operator: string; operand: Expression }[] = [];
    for (;;) {
      const token = this.#peek();
      if (token?.type === 'operator' && COMPARISONS.has(token.value)) {
        this.#at++;
        rest.push({ operator: token.value, operand: this.#sum() });
      } else if (this.#skip('name', 'in')) {
        rest.push({ operator: 'in', operand: this.#sum() });
      } else if (this.#is('name', 'not') && this.#is('name', 'in', 1)) {
        this.#at += 2;
        rest.push({ operator: 'not in', operand: this.#sum() });
      } else break;
    }
    if (rest.length === 0) return first;
    return (scope) => {
      let left = first(scope);
      for (const { operator, operand } of rest) {
        const right = operand(scope);
        if (!compares(operator, left, right)) return false;
        left = right;
      }
      return true;
    };
  }

  #binary(operators: readonly string[], operand: () => Expression): Expression {
    const first = operand();
    const rest: { operator: string; operand: Expression }[] = [];
    while (operators.some((operator) => this.#is('operator', operator))) {
      rest.push({ operator: this.#next().value, operand: operand() });
    }
    if (rest.length === 0) return first;
    return (scope) => {
      let value = first(scope);
      for (const { operator, operand: right } of rest) {
        value = arithmetic(operator, value, right(scope));
      }
      return value;
    };
  }

  #sum(): Expression {
    return this.#binary(['+', '-'], () => this.#concatenation());
  }

  #concatenation(): Expression {
    const first = this.#product();
    if (!this.#is('operator', '~')) return first;
    const operands = [first];
    while (this.#skip('operator', '~')) operands.push(this.#product());
    return (scope) => Builder.join(operands.map((operand) => toText(operand(scope))));
  }

  #product(): Expression {
    return this.#binary(['*', '/', '//', '%'], () => this.#binary(['**'], () => this.#unary(true)));
  }

  #unary(withFilters: boolean): Expression {
    let value: Expression;
    if (this.#is('operator', '-') || this.#is('operator', '+')) {
      const sign = this.#next().value;
      const operand = nested(() => this.#unary(false));
      value = (scope) => signed(sign, operand(scope));
      return withFilters ? this.#suffixes(value, []) : value;
    }
    value = this.#primary();
    const steps = this.#postfix();
    return withFilters ? this.#suffixes(value, steps) : this.#chain(value, steps);
  }

  /** Remembers an expression that ends with a call, for call blocks. */
  #chain(base: Expression, steps: readonly Step[]): Expression {
    const expression = chain(base, steps);
    if (this.#endsWithCall && steps.length > 0) this.#call = expression;
    return expression;
  }

  #endsWithCall = false;

  #primary(): Expression {
    const token = this.#peek();
    if (token === undefined) throw this.#unexpected();
    this.#at++;
    const { type, value: word } = token;
    if (type === 'name') {
      if (Object.hasOwn(CONSTANTS, word)) {
        const value = CONSTANTS[word] as Value;
        return () => value;
      }
      for (const uses of this.#uses) uses.add(word);
      return (scope) => scope.get(word);
    }
    if (type === 'string') {
      let literal = word;
      while (this.#is('string')) literal += this.#next().value;
      const text = Text.plain(literal);
      return () => text;
    }
    if (type === 'integer') {
      const value = int(Number(word));
      return () => value;
    }
    if (type === 'float') {
      const value = new Float(Number(word));
      return () => value;
    }
    if (type === 'operator' && word === '(') return this.#parentheses();
    if (type === 'operator' && word === '[') {
      const items = this.#items(']');
      return (scope) => {
        spend(items.length);
        return items.map((one) => one(scope));
      };
    }
    if (type === 'operator' && word === '{') return this.#dict();
    this.#at--;
    throw this.#unexpected();
  }

  #parentheses(): Expression {
    if (this.#skip('operator', ')')) return () => new Tuple([]);
    const value = this.#tuple();
    this.#expect('operator', ')');
    return value;
  }

  #items(close: string): Expression[] {
    const items: Expression[] = [];
    while (!this.#skip('operator', close)) {
      if (items.length > 0) this.#expect('operator', ',');
      if (this.#skip('operator', close)) break;
      items.push(this.#expression());
    }
    return items;
  }

  #dict(): Expression {
    const entries: { key: Expression; value: Expression }[] = [];
    while (!this.#skip('operator', '}')) {
      if (entries.length > 0) this.#expect('operator', ',');
      if (this.#skip('operator', '}')) break;
      const key = this.#expression();
      this.#expect('operator', ':');
      entries.push({ key, value: this.#expression() });
    }
    return (scope) => {
      const dict = new Dict();
      for (const { key, value } of entries) dict.set(key(scope), value(scope));
      return dict;
    };
  }

  /** Attributes, subscripts and calls. */
  #postfix(): Step[] {
    const steps: Step[] = [];
    this.#endsWithCall = false;
    for (;;) {
      if (this.#skip('operator', '.')) {
        const token = this.#next();
        if (token.type === 'name') {
          const { value: name } = token;
          steps.push((value) => attribute(value, name));
        } else if (token.type === 'integer') {
          const index = Number(token.value);
          steps.push((value) => item(value, index));
        } else {
          this.#at--;
          throw this.#unexpected('name');
        }
        this.#endsWithCall = false;
      } else if (this.#skip('operator', '[')) {
        steps.push(this.#subscript());
        this.#endsWithCall = false;
      } else if (this.#is('operator', '(')) {
        steps.push(this.#callStep());
        this.#endsWithCall = true;
      } else return steps;
    }
  }

  #callStep(): Step {
    const collect = this.#arguments();
    return (value, scope, caller) => {
      const args = collect(scope);
      if (caller !== undefined) args.named.set('caller', caller);
      return invoke(value, args);
    };
  }

  #subscript(): Step {
    const parts: (Expression | undefined)[] = [];
    let isSlice = false;
    for (;;) {
      const isEmpty = this.#is('operator', ':') || this.#is('operator', ']');
      parts.push(isEmpty ? undefined : this.#tuple());
      if (!this.#skip('operator', ':')) break;
      isSlice = true;
    }
    this.#expect('operator', ']');
    const [first] = parts;
    if (isSlice && parts.length <= 3) {
      return (value, scope) =>
        slice(
          value,
          [0, 1, 2].map((i) => parts[i]?.(scope)),
        );
    }
    if (isSlice || first === undefined) throw this.#unexpected('subscript');
    return (value, scope) => item(value, first(scope));
  }

  #arguments(): CollectArguments {
    const positional: { value: Expression; spreads: boolean }[] = [];
    const named: { name: string | undefined; value: Expression }[] = [];
    this.#expect('operator', '(');
    let isFirst = true;
    while (!this.#skip('operator', ')')) {
      if (!isFirst) this.#expect('operator', ',');
      isFirst = false;
      if (this.#skip('operator', ')')) break;
      if (this.#skip('operator', '**')) named.push({ name: undefined, value: this.#expression() });
      else if (this.#skip('operator', '*')) {
        positional.push({ value: this.#expression(), spreads: true });
      } else if (this.#is('name') && this.#is('operator', '=', 1)) {
        const { value: name } = this.#next();
        this.#at++;
        named.push({ name, value: this.#expression() });
      } else {
        if (named.length > 0) throw this.#unexpected('a named argument');
        positional.push({ value: this.#expression(), spreads: false });
      }
    }
    return (scope) => {
      spend(positional.length + named.length);
      const args: Arguments = { positional: [], named: new Map() };
      for (const { value, spreads } of positional) {
        const argument = value(scope);
        if (spreads) for (const element of elements(argument)) args.positional.push(element);
        else args.positional.push(argument);
      }
      for (const { name, value } of named) {
        const argument = value(scope);
        if (name !== undefined) args.named.set(name, argument);
        else if (argument instanceof Dict) {
          for (const [key, one] of argument.entries()) args.named.set(toText(key).value, one);
        } else throw pythonError('the argument after ** must be a mapping');
      }
      return args;
    };
  }

  /** Filters, tests and calls after an operand. */
  #suffixes(base: Expression, postfix: readonly Step[]): Expression {
    const steps = [...postfix];
    for (;;) {
      if (this.#skip('operator', '|')) {
        steps.push(this.#filter());
        this.#endsWithCall = false;
      } else if (this.#skip('name', 'is')) {
        steps.push(this.#test());
        this.#endsWithCall = false;
      } else if (this.#is('operator', '(')) {
        steps.push(this.#callStep());
        this.#endsWithCall = true;
      } else return this.#chain(base, steps);
    }
  }

  #dottedName(): string {
    let { value: name } = this.#expect('name');
    while (this.#skip('operator', '.')) name += `.${this.#expect('name').value}`;
    return name;
  }

  #filter(): Step {
    const name = this.#dottedName();
    const collect = this.#is('operator', '(') ? this.#arguments() : undefined;
    return (value, scope) =>
      runFilter(name, value, collect?.(scope) ?? { positional: [], named: new Map() });
  }

  #test(): Step {
    const isNegated = this.#skip('name', 'not');
    const name = this.#dottedName();
    let collect: CollectArguments | undefined;
    if (this.#is('operator', '(')) collect = this.#arguments();
    else if (this.#startsArgument()) {
      if (this.#is('name', 'is')) {
        const line = this.#peek()?.line ?? 1;
        throw syntaxError('You cannot chain multiple tests with is', line);
      }
      const argument = nested(() => chain(this.#primary(), this.#postfix()));
      collect = (scope) => ({ positional: [argument(scope)], named: new Map() });
    }
    return (value, scope) => {
      const args = collect?.(scope) ?? { positional: [], named: new Map() };
      return runTest(name, value, args) !== isNegated;
    };
  }

  #startsArgument(): boolean {
    const token = this.#peek();
    if (token === undefined) return false;
    if (token.type === 'name') return !['else', 'or', 'and'].includes(token.value);
    if (token.type === 'operator') return ['(', '[', '{'].includes(token.value);
    return ['string', 'integer', 'float'].includes(token.type);
  }
}

function signed(sign: string, value: Value): Value {
  if (value instanceof Undefined) throw value.fail();
  const number = toNumber(value);
  if (number === undefined) {
    throw pythonError(`bad operand type for unary ${sign}: '${typeName(value)}'`);
  }
  const result = sign === '-' ? -number : number;
  return value instanceof Float ? new Float(result) : int(result);
}
