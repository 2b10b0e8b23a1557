import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { atMostOne, required, timeoutMs, wholeMiB, wholeNumber } from '../../lib/cli/parse.ts'
import { throwsFault } from '../expect.ts'

const test = suite('cli/parse')

test('a whole number within its bounds', () => {
  for (const [text, value] of [
    ['0', 0],
    ['007', 7],
    ['65535', 65535],
  ] as const) {
    assert.is(wholeNumber('--port', text, 0, 65535), value)
  }
  for (const text of ['', ' 1', '-1', '+1', '1.0', '1e3', '0x1', '65536', '9'.repeat(16), 'x', '1\n']) {
    const { message } = throwsFault('USAGE', () => wholeNumber('--port', text, 0, 65535), JSON.stringify(text))
    assert.is(message, `--port wants a number from 0 to 65535, not ${text}`)
  }
  throwsFault('USAGE', () => wholeNumber('--port', '0', 1, 65535))
})

test('seconds become milliseconds', () => {
  for (const [text, ms] of [
    ['1', 1000],
    ['0.5', 500],
    ['0.0015', 2],
    ['30', 30_000],
    ['999999', 999_999_000],
  ] as const) {
    assert.is(timeoutMs(text), ms, text)
  }
  for (const text of ['', '0', '0.0', '-1', '1s', '1.', '.5', '1e3', '1000000', 'Infinity', 'NaN', ' 1']) {
    throwsFault('USAGE', () => timeoutMs(text), JSON.stringify(text))
  }
})

test('whole MiB', () => {
  assert.is(wholeMiB('--size', '1G'), 2 ** 30)
  assert.is(wholeMiB('--size', '0.5G'), 2 ** 29)
  for (const text of ['0', '1', '1.3M', 'lots']) throwsFault('USAGE', () => wholeMiB('--size', text), text)
})

test('flags that do not go together are named', () => {
  atMostOne({})
  atMostOne({ '--a': undefined, '--b': false, '--c': 'x' })
  atMostOne({ '--a': true })
  assert.is(throwsFault('USAGE', () => atMostOne({ '--a': 1, '--b': 2 })).message, '--a and --b do not go together')
  const fault = throwsFault('USAGE', () => atMostOne({ '--a': true, '--b': undefined, '--c': '', '--d': '1' }))
  assert.is(fault.message, '--a and --c and --d do not go together')
  assert.is(fault.hint, 'choose one')
})

test('a flag that must be there', () => {
  assert.is(required('--cache', 'x', 'hint'), 'x')
  assert.is(required('--cache', '', 'hint'), '')
  const fault = throwsFault('USAGE', () => required('--cache', undefined, 'name a cache'))
  assert.equal([fault.message, fault.hint], ['--cache is missing', 'name a cache'])
})

test.run()
