// The progress of a run: the number of the current cell, and the time left.
import type { Cell } from './suite';

/** '45 s', '3 min 20 s', '1 h 5 min'. */
export function formatDuration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** The guessed time of the remaining cells, corrected by the ratio of real to guessed time of the cells before. */
export function timeLeft(guessedDone: number, tookDone: number, guessedLeft: number): number {
  // Two seconds are added to both, so that a first short cell does not dominate the estimate.
  return guessedLeft * ((tookDone + 2) / (guessedDone + 2));
}

export class Progress {
  private guessedDone = 0;
  private tookDone = 0;
  private lineOpen = false;

  constructor(
    private readonly cells: readonly Pick<Cell, 'name' | 'seconds'>[],
    private readonly out: { write(text: string): unknown; isTTY?: boolean } = process.stderr,
  ) {}

  /** Shows that cell `index` begins. */
  start(index: number): void {
    const { name } = this.cells[index] as Cell;
    const guessedLeft = this.cells.slice(index).reduce((sum, { seconds }) => sum + seconds, 0);
    const left = formatDuration(timeLeft(this.guessedDone, this.tookDone, guessedLeft));
    const text = `[${index + 1}/${this.cells.length}] ${name}, ${left} left`;
    this.out.write(this.out.isTTY ? `\r\x1b[K${text}` : `${text}\n`);
    this.lineOpen = this.out.isTTY === true;
  }

  done(index: number, seconds: number): void {
    this.guessedDone += (this.cells[index] as Cell).seconds;
    this.tookDone += seconds;
  }

  /** Writes a line that stays. */
  say(line: string): void {
    this.out.write(this.lineOpen ? `\r\x1b[K${line}\n` : `${line}\n`);
    this.lineOpen = false;
  }

  end(): void {
    if (this.lineOpen) this.out.write('\r\x1b[K');
    this.lineOpen = false;
  }
}
