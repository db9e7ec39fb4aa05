"""What holds where nobody says otherwise, for library, command line and figures alike; needs no torch."""

#: Radius of attacks, n of n/255, on a model of which nothing says at which one it was trained (else that one is taken,
#: since CO is a matter of the training budget): the one at which most people train and publish.
EPS = 8.0
#: The same for L2: a length of images in [0, 1], the one at which CIFAR-10 is usually attacked.
EPS_L2 = 0.5
#: Attacks to measure accuracy under, and to tell CO by: a CO-affected model withstands the first alone.
ATTACKS = ("fgsm", "pgd:10")
#: The attack behind V_act and T_act: every image takes every step, so that channels are compared at the same effort.
#: The rule of the official evaluation leaves an image of a weak model just behind the decision border, where its
#: channels have hardly moved.
PROBING_ATTACK = "pgd:10:rule=always"
#: The factor inside tanh of Eq. 6.
ALPHA = 100.0
#: T_act above which a channel counts as salient, and is masked: α2 of Eq. 7.
SALIENT = 0.5
#: Selectors of masks to hold a mask of salient channels against, and how many random masks are averaged.
COMPARED = ("variance", "random", "attribution")
RANDOM_MASKS = 5
