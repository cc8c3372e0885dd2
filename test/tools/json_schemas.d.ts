/** A JSON schema and what is special about it. */
export interface Example {
  kind: string;
  schema: Record<string, unknown>;
}

export function jsonSchemas(count: number, seed?: number): Example[];
export function randomIntegers(seed: number): (below: number) => number;
