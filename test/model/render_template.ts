// Renders chat templates for tests.
import { type ChatMessage, ChatTemplate, type ChatTemplateOptions } from '../../lib/chat';
import { DiffqkvError } from '../../lib/errors';

export function compile(source: string): ChatTemplate {
  return new ChatTemplate('a model', { default: source, toolUse: undefined }, { bos_token: '<s>', eos_token: '</s>' });
}

/** Renders for one short message. */
export function render(
  source: string,
  options?: ChatTemplateOptions,
  messages: ChatMessage[] = [{ role: 'user', content: 'hi' }],
) {
  return compile(source).render(messages, options);
}

/** The error of `work`, which must throw one with a code. */
export function errorOf(work: () => unknown): DiffqkvError {
  try {
    work();
  } catch (error) {
    if (error instanceof DiffqkvError) return error;
    throw error;
  }
  throw new Error('no error');
}
