import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { formatSize, parseSize } from '../lib/size.ts'
import { throwsFault } from './expect.ts'

const test = suite('size')

test('reads numbers with 1024-based suffixes', () => {
  const sizes = [
    ['0', 0],
    ['512', 512],
    ['1k', 1024],
    ['64K', 65536],
    ['1.5G', 1610612736],
    ['0.1k', 102],
    ['3MB', 3145728],
    ['3MiB', 3145728],
    ['2t', 2199023255552],
    ['100B', 100],
    ['9007199254740991', Number.MAX_SAFE_INTEGER],
  ] as const
  for (const [text, bytes] of sizes) assert.is(parseSize(text), bytes, text)
})

test('refuses what is no size, with a hint', () => {
  const texts = [
    '',
    ' 1',
    '1 ',
    '-1',
    '+1',
    '1e3',
    '0x10',
    '1.',
    '.5',
    '1,5',
    'k',
    '1kk',
    '1p',
    'Infinity',
    'NaN',
    '1\n',
  ]
  for (const text of [...texts, '9007199254740992', '8192t']) {
    assert.match(throwsFault('USAGE', () => parseSize(text), text).hint ?? '', '512M')
  }
})

test('writes three digits', () => {
  const sizes = [
    [0, '0 B'],
    [1023, '1023 B'],
    [1024, '1.00 KiB'],
    [10 * 1024, '10.0 KiB'],
    [100 * 1024, '100 KiB'],
    [2 ** 20 - 1, '1024 KiB'],
    [2 ** 20, '1.00 MiB'],
    [1.5 * 2 ** 30, '1.50 GiB'],
    [2 ** 40, '1.00 TiB'],
    [2 ** 50, '1024 TiB'],
  ] as const
  for (const [bytes, text] of sizes) assert.is(formatSize(bytes), text)
})

test.run()
