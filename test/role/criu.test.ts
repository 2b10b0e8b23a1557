import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { leavingOption } from '../../lib/role/criu.ts'

const test = suite('criu options')

test('options that leave the tasks are known in every spelling that getopt takes', () => {
  for (const option of [
    ...['-R', '-s', '-lR', '-Rv', '-Rv4', '-jls', '-dRt'],
    ...['--leave-running', '--leave-stopped', '--leave-r', '--leave-runn', '--leave-s', '--leave-stop'],
  ]) {
    assert.is(leavingOption(['--tcp-established', option, '-v4']), option)
  }
})

test('what only looks like one is none', () => {
  for (const words of [
    // CRIU: -v and -x take the rest of their word, the others that or the next word.
    ...[['-vR'], ['-xs'], ['-oR.log'], ['-o', '-R'], ['-lo', '-s'], ['-j'], ['-v4'], ['Rs'], ['']],
    // Two options begin so, and criu refuses it.
    ...[['--leave'], ['--leave-'], ['--le']],
    ['--leave-running-not'],
  ]) {
    assert.is(leavingOption(words), undefined, words.join(' '))
  }
  assert.is(leavingOption(['-o', '-R', '-R']), '-R')
  assert.is(leavingOption(['-v', '-R']), '-R')
})

test.run()
