"""A user's own handler, run through every crash point and every ending of a call.

exercise   what to run, and in which order; compares with an undisturbed run
world      one case: members one after another, each the real `OnceConsumer`
ports      Kafka and the store, as one member sees them
calls      which calls the handler makes itself
steps      what can go wrong where
samples    the records
report     what came of it;  words   the same in English
"""
