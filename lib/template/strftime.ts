import { unsupported } from './fuel';

const DAYS = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday'];
const MONTHS = [
  ...['January', 'February', 'March', 'April', 'May', 'June', 'July', 'August', 'September'],
  ...['October', 'November', 'December'],
];
const MILLISECONDS_PER_DAY = 86_400_000;

function pad(value: number, width: number, fill = '0'): string {
  return String(value).padStart(width, fill);
}

/** Days since January 1: 0 to 365. */
function dayOfYear(date: Date): number {
  const midnight = Date.UTC(date.getFullYear(), date.getMonth(), date.getDate());
  return (midnight - Date.UTC(date.getFullYear(), 0, 1)) / MILLISECONDS_PER_DAY;
}

/** Year and week of ISO 8601: the week belongs to the year of its Thursday. */
function isoWeek(date: Date): [year: number, week: number] {
  const weekday = (date.getDay() + 6) % 7;
  const thursday = new Date(date.getFullYear(), date.getMonth(), date.getDate() - weekday + 3);
  return [thursday.getFullYear(), Math.floor(dayOfYear(thursday) / 7) + 1];
}

type Field = (date: Date) => string;
const FIELDS: Record<string, Field> = {
  a: (date) => (DAYS[date.getDay()] as string).slice(0, 3),
  A: (date) => DAYS[date.getDay()] as string,
  b: (date) => (MONTHS[date.getMonth()] as string).slice(0, 3),
  B: (date) => MONTHS[date.getMonth()] as string,
  c: (date) => strftime(date, '%a %b %e %H:%M:%S %Y'),
  C: (date) => pad(Math.floor(date.getFullYear() / 100), 2),
  d: (date) => pad(date.getDate(), 2),
  D: (date) => strftime(date, '%m/%d/%y'),
  e: (date) => pad(date.getDate(), 2, ' '),
  f: (date) => pad(date.getMilliseconds() * 1000, 6),
  F: (date) => strftime(date, '%Y-%m-%d'),
  g: (date) => pad(isoWeek(date)[0] % 100, 2),
  G: (date) => String(isoWeek(date)[0]),
  h: (date) => (MONTHS[date.getMonth()] as string).slice(0, 3),
  H: (date) => pad(date.getHours(), 2),
  I: (date) => pad(date.getHours() % 12 || 12, 2),
  j: (date) => pad(dayOfYear(date) + 1, 3),
  k: (date) => pad(date.getHours(), 2, ' '),
  l: (date) => pad(date.getHours() % 12 || 12, 2, ' '),
  m: (date) => pad(date.getMonth() + 1, 2),
  M: (date) => pad(date.getMinutes(), 2),
  n: () => '\n',
  p: (date) => (date.getHours() < 12 ? 'AM' : 'PM'),
  P: (date) => (date.getHours() < 12 ? 'am' : 'pm'),
  r: (date) => strftime(date, '%I:%M:%S %p'),
  R: (date) => strftime(date, '%H:%M'),
  s: (date) => String(Math.floor(date.getTime() / 1000)),
  S: (date) => pad(date.getSeconds(), 2),
  t: () => '\t',
  T: (date) => strftime(date, '%H:%M:%S'),
  u: (date) => String(date.getDay() || 7),
  U: (date) => pad(Math.floor((dayOfYear(date) + 7 - date.getDay()) / 7), 2),
  V: (date) => pad(isoWeek(date)[1], 2),
  w: (date) => String(date.getDay()),
  W: (date) => pad(Math.floor((dayOfYear(date) + 7 - ((date.getDay() + 6) % 7)) / 7), 2),
  x: (date) => strftime(date, '%m/%d/%y'),
  X: (date) => strftime(date, '%H:%M:%S'),
  y: (date) => pad(date.getFullYear() % 100, 2),
  Y: (date) => String(date.getFullYear()),
  // datetime.now() has no time zone.
  z: () => '',
  Z: () => '',
  '%': () => '%',
};

/** datetime.strftime in the C locale and local time. */
export function strftime(date: Date, format: string): string {
  return format.replace(/%([-_0^]?)([\s\S]?)/gu, (whole, flag: string, letter: string) => {
    const field = Object.hasOwn(FIELDS, letter) ? FIELDS[letter] : undefined;
    if (field === undefined) throw unsupported(`${whole} in strftime_now`);
    const value = field(date);
    if (flag === '^') return value.toUpperCase();
    if (flag === '-') return value.replace(/^[0 ]+(?=.)/, '');
    if (flag === '_') return value.replace(/^0+(?=.)/, (zeros) => ' '.repeat(zeros.length));
    return flag === '0' ? value.replace(/^ +/, (blanks) => '0'.repeat(blanks.length)) : value;
  });
}
