import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { sendingOf } from '../../lib/cli/sending.ts'
import { throwsFault } from '../expect.ts'

const test = suite('cli/sending')

test('how to compress is one of four words', () => {
  assert.equal(sendingOf({ compress: 'none' }), { compress: undefined, rate: undefined })
  for (const compress of ['auto', 'zstd', 'lz4']) assert.is(sendingOf({ compress }).compress, compress)
  for (const compress of ['', 'ZSTD', 'gzip', 'zstd ']) {
    assert.match(throwsFault('USAGE', () => sendingOf({ compress })).message, `not ${compress}`)
  }
})

test('a rate is a size of at least 1k', () => {
  const rate = (text: string): number | undefined => sendingOf({ compress: 'none', 'rate-limit': text }).rate
  assert.is(rate('50M'), 50 * 2 ** 20)
  assert.is(rate('1024'), 1024)
  for (const text of ['0', '1023', '-1', 'fast', '']) throwsFault('USAGE', () => rate(text), text)
})

test.run()
